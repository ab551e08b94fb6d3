/* Puts an image into guest memory; image_memory.h has the contract. */
#include "image_memory.h"

#include <errno.h>
#include <sys/mman.h>

#include "entered.h"

_Static_assert(ELF_IMAGE_SEGMENTS_MAX == GUEST_RANGES_MAX, "a range for each segment");

uint32_t image_ranges(const struct elf_image *image, struct guest_range ranges[GUEST_RANGES_MAX])
{
    for (uint32_t i = 0; i < image->segment_count; i++) {
        const struct elf_segment *segment = &image->segments[i];
        ranges[i] = (struct guest_range){segment->start, segment->end, segment->flags};
    }
    return image->segment_count;
}

int image_memory_protect(struct guest_memory *memory, const struct elf_image *image)
{
    memory->range_count = image_ranges(image, memory->ranges);
    entered(memory, memory->hva, image_end(image), ENTERED_START_STATE);
    return guest_memory_protect(memory, image_end(image));
}

int image_memory_map(struct guest_memory *memory, const struct elf_image *image, int template_fd,
                     uint64_t template_bytes, uint64_t mem_bytes, uint64_t mapped_bytes)
{
    int error = guest_memory_reserve(memory, mem_bytes, mapped_bytes);
    if (error < 0)
        return error;
    memory->template_bytes = template_bytes;
    if (mmap(memory->hva, template_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE,
             template_fd, 0) == MAP_FAILED) {
        error = -errno;
        guest_memory_unmap(memory);
        return error;
    }
    return image_memory_protect(memory, image);
}
