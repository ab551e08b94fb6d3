/* An image in guest memory: its template mapped, its segments with their rights. */
#ifndef TENDER_IMAGE_MEMORY_H
#define TENDER_IMAGE_MEMORY_H

#include "elf_image.h"
#include "guest_memory.h"

/* The first address behind all that the image has in memory. */
static inline gpa_t image_end(const struct elf_image *image)
{
    return image->bss_end > image->kernel_end ? image->bss_end : image->kernel_end;
}

/* Its segments' rights, as guest memory has them; how many. */
uint32_t image_ranges(const struct elf_image *image, struct guest_range ranges[GUEST_RANGES_MAX]);

/* Of memory that guest_memory_reserve() made and somebody filled. 0 or -errno; unmaps on failure. */
int image_memory_protect(struct guest_memory *memory, const struct elf_image *image);

/* guest_memory_reserve(), the template privately at 0, and the rights. Nothing stays mapped on failure. */
int image_memory_map(struct guest_memory *memory, const struct elf_image *image, int template_fd,
                     uint64_t template_bytes, uint64_t mem_bytes, uint64_t mapped_bytes);

#endif
