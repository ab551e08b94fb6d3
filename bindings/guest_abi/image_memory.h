/* Puts an image into guest memory: maps its template, and gives its segments their rights. */
#ifndef TENDER_IMAGE_MEMORY_H
#define TENDER_IMAGE_MEMORY_H

#include "elf_image.h"
#include "guest_memory.h"

/* Returns the first address after everything that the image has in memory. */
static inline gpa_t image_end(const struct elf_image *image)
{
    return image->bss_end > image->kernel_end ? image->bss_end : image->kernel_end;
}

/* Fills `ranges` with the rights of the image's segments. Returns their number. */
uint32_t image_ranges(const struct elf_image *image, struct guest_range ranges[GUEST_RANGES_MAX]);

/*
 * Sets the image's rights in memory that guest_memory_reserve() made and the caller has filled.
 * Returns 0 or -errno; unmaps on failure.
 */
int image_memory_protect(struct guest_memory *memory, const struct elf_image *image);

/*
 * Calls guest_memory_reserve(), maps the template privately at 0, and sets the rights. Returns 0 or
 * -errno; on failure nothing stays mapped.
 */
int image_memory_map(struct guest_memory *memory, const struct elf_image *image, int template_fd,
                     uint64_t template_bytes, uint64_t mem_bytes, uint64_t mapped_bytes);

#endif
