/* Guest memory as a mapping of the process that holds the VM; guest_memory.h has the contract. */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>

#include "guest_memory.h"

int guest_memory_map(struct guest_memory *memory, const struct elf_image *image, int template_fd,
                     uint64_t template_bytes, uint64_t mem_bytes, uint64_t mapped_bytes)
{
    void *hva =
        mmap(NULL, mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (hva == MAP_FAILED)
        return -errno;
    memory->hva = hva;
    memory->bytes = mem_bytes;
    memory->template_bytes = template_bytes;
    memory->mapped_bytes = mapped_bytes;
    memory->range_count = 0;
    if (mmap(hva, template_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE,
             template_fd, 0) == MAP_FAILED)
        goto fail;
    /* A host that dumps core, or forks, has no business with guest memory. Said before the segments split it:
     * each piece would be another walk. */
    (void)madvise(hva, mapped_bytes, MADV_DONTDUMP);
    (void)madvise(hva, mapped_bytes, MADV_DONTFORK);
    /* The stack begins at the very top, and the ring behind it: where transparent huge pages are always on, a
     * guest's first push would clear 2 MiB, which costs as much as all the rest of its boot. */
    const uint64_t small_from = mem_bytes - HVT_MEM_GRANULE;
    (void)madvise((uint8_t *)hva + small_from, mapped_bytes - small_from, MADV_NOHUGEPAGE);
    for (uint32_t i = 0; i < image->segment_count; i++) {
        const struct elf_segment *segment = &image->segments[i];
        if (segment->end > mem_bytes) {
            errno = EINVAL;
            goto fail;
        }
        int protection = guest_protection(segment->flags);
        if (protection != (PROT_READ | PROT_WRITE) &&
            mprotect((uint8_t *)hva + segment->start, segment->end - segment->start, protection) != 0)
            goto fail;
        memory->ranges[memory->range_count++] =
            (struct guest_range){segment->start, segment->end, segment->flags};
    }
    return 0;
fail:;
    int error = -errno;
    guest_memory_unmap(memory);
    return error;
}

void guest_memory_unmap(struct guest_memory *memory)
{
    guest_memory_forget(memory);
    if (memory->hva)
        munmap(memory->hva, memory->mapped_bytes);
    memory->hva = NULL;
    memory->bytes = memory->mapped_bytes = 0;
    memory->range_count = 0;
}
