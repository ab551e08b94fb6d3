/* Guest memory as a mapping in the process that holds the VM. guest_memory.h has the contract. */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>
#include <sys/personality.h>

#include "guest_memory.h"

int guest_memory_reserve(struct guest_memory *memory, uint64_t mem_bytes, uint64_t mapped_bytes)
{
    /*
     * personality(2): with READ_IMPLIES_EXEC every readable page is executable, and mmap() does not
     * report it.
     */
    const int now = personality(0xffffffff);
    if (now != -1 && now & READ_IMPLIES_EXEC) /* -1: an inherited seccomp filter refuses the call */
        return -ENOEXEC;
    void *hva =
        mmap(NULL, mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (hva == MAP_FAILED)
        return -errno;
    memory->hva = hva;
    memory->bytes = mem_bytes;
    memory->mapped_bytes = mapped_bytes;
    memory->range_count = 0;
    memory->open_bytes = 0;
    return 0;
}

/*
 * Neither a core dump of the host's process nor its fork needs guest memory. This is called before
 * the segments' rights split the mapping: afterwards the kernel would walk each piece.
 */
static void advise(const struct guest_memory *memory, gpa_t image_end)
{
    (void)madvise(memory->hva, memory->mapped_bytes, MADV_DONTDUMP);
    (void)madvise(memory->hva, memory->mapped_bytes, MADV_DONTFORK);
    const gpa_t small_end = guest_small_pages_end(image_end, memory->bytes),
                top = memory->bytes - HVT_MEM_GRANULE;
    if (small_end >= top) {
        (void)madvise(memory->hva, memory->mapped_bytes, MADV_NOHUGEPAGE);
        return;
    }
    (void)madvise(memory->hva, small_end, MADV_NOHUGEPAGE);
    (void)madvise(memory->hva + top, memory->mapped_bytes - top,
                  MADV_NOHUGEPAGE); /* the stack, and the ring after it */
}

int guest_memory_protect(struct guest_memory *memory, gpa_t image_end)
{
    advise(memory, image_end);
    for (uint32_t i = 0; i < memory->range_count; i++) {
        const struct guest_range *range = &memory->ranges[i];
        int protection = guest_protection(range->flags);
        errno = EINVAL;
        if (range->end > memory->bytes ||
            (protection != (PROT_READ | PROT_WRITE) &&
             mprotect(memory->hva + range->start, range->end - range->start, protection) != 0)) {
            int error = -errno;
            guest_memory_unmap(memory);
            return error;
        }
    }
    guest_memory_ranges_set(memory);
    return 0;
}

void guest_memory_unmap(struct guest_memory *memory)
{
    guest_memory_forget(memory);
    if (memory->hva)
        munmap(memory->hva, memory->mapped_bytes);
    memory->hva = NULL;
    memory->bytes = memory->mapped_bytes = 0;
    memory->range_count = 0;
    memory->open_bytes = 0;
}
