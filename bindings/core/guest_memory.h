/*
 * Guest-physical address to host-virtual address, with a length: the only place that converts.
 *
 * A guest may name any number. What it names is valid for reading if [gpa, gpa + len) lies in its memory and
 * no segment of the image there forbids reading, and it begins where the guest itself can read, above the 64
 * KiB that are not present in its page tables; for writing if it also lies above the low megabyte (page
 * tables, boot info) and in no segment that is not writable. The same rights hold below the guest, by
 * mprotect, so an access that slipped past here would be EFAULT in a system call, never a write.
 */
#ifndef TENDER_GUEST_MEMORY_H
#define TENDER_GUEST_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>

#include "vm_types.h"

struct guest_range {
    gpa_t start;
    gpa_t end;
    uint32_t flags; /* SEGMENT_READ ... */
};

struct guest_memory {
    uint8_t *hva;
    uint64_t bytes;        /* M: what the guest may name */
    uint64_t mapped_bytes; /* A: M, and the network ring's area behind it */
    uint64_t template_bytes;
    uint8_t *template; /* NULL: it is not to be reset */
    int pagemap_fd;
    uint32_t range_count;
    struct guest_range ranges[GUEST_RANGES_MAX]; /* ascending, disjoint */
    struct entry_listener *listener;             /* entered.h; NULL: nobody listens */
    gpa_t open_start;    /* from here on, up to the end of `bytes`, the guest may read and write all ... */
    uint64_t open_bytes; /* ... of so many; 0: nobody has looked */
};

/* PROT_... of a mapping of memory with these SEGMENT_... flags, but for execution, which only a backend may
 * give. */
static inline int guest_protection(uint32_t flags)
{
    int protection = PROT_NONE;
    if (flags & (SEGMENT_READ | SEGMENT_EXEC))
        protection |= PROT_READ; /* text is read, whatever protection keys the processor has */
    if (flags & SEGMENT_WRITE)
        protection |= PROT_READ | PROT_WRITE; /* x86 has no write-only page */
    return protection;
}

/*
 * Where transparent huge pages are always on, the first touch of 2 MiB clears all of it: as much work as all
 * the rest of a small guest's boot, and ten times the memory that it keeps. So the image and a small heap
 * behind it have small pages, up to this address, and so has the top, where the stack begins; a large heap
 * may have huge ones.
 */
static inline gpa_t guest_small_pages_end(gpa_t image_end, uint64_t mem_bytes)
{
    const gpa_t end = image_end + (16u << 20);
    return end < mem_bytes ? end & ~(gpa_t)(HVT_MEM_GRANULE - 1) : mem_bytes;
}

enum guest_access { GUEST_READABLE, GUEST_WRITABLE };

/* For ranges that are there to stay: finds the open part. Any change of `bytes` or `ranges` closes it first.
 */
void guest_memory_ranges_set(struct guest_memory *memory);

/* guest_memory_at() for what does not lie in the open part alone. */
void *guest_memory_in_ranges(const struct guest_memory *memory, gpa_t gpa, uint64_t len,
                             enum guest_access access);

/* The host's address of [gpa, gpa + len), or NULL if the guest may not name it so. len 0 is valid up to M,
 * and then what comes back is not to be touched. Handlers ask by guest_bytes_at() and, for what they fill, by
 * guest_buffer_at() (entered.h). */
static inline void *guest_memory_at(const struct guest_memory *memory, gpa_t gpa, uint64_t len,
                                    enum guest_access access)
{
    /* What guests name is nearly always in their data, heap or stack: two comparisons, and no loop. */
    const uint64_t at = gpa - memory->open_start; /* below it: larger than open_bytes */
    if (at >= memory->open_bytes || len > memory->open_bytes - at)
        return guest_memory_in_ranges(memory, gpa, len, access);
    uint8_t *hva = memory->hva + gpa;
    if (!hva)
        __builtin_unreachable(); /* it begins above HVT_GUEST_MIN_GPA: spares whoever asks the question */
    return hva;
}

/* The same for what is only read. */
static inline const void *guest_bytes_at(const struct guest_memory *memory, gpa_t gpa, uint64_t len)
{
    return guest_memory_at(memory, gpa, len, GUEST_READABLE);
}

/*
 * Maps `mapped_bytes` of guest memory, of which the guest may name the first `mem_bytes`: zero pages that may
 * be written, nothing reserved. Returns 0 or -errno; -ENOEXEC where the process's personality says that what
 * it reads it may execute. The mapping is released by guest_memory_unmap().
 */
int guest_memory_reserve(struct guest_memory *memory, uint64_t mem_bytes, uint64_t mapped_bytes);

/*
 * Once it is filled: gives each of the `range_count` pieces in `ranges` its rights (execution becomes
 * reading: the host never executes guest memory). `image_end`: of what was loaded. 0 or -errno; unmaps on
 * failure.
 */
int guest_memory_protect(struct guest_memory *memory, gpa_t image_end);

void guest_memory_unmap(struct guest_memory *memory);

/*
 * For memory that will be reset (guest_reset.c): keep() once, before the first run, with the descriptor it
 * was mapped from; reset() makes it the template's bytes and zeroes again, with the same rights; forget() is
 * unmap()'s part. 0 or -errno.
 */
int guest_memory_keep(struct guest_memory *memory, int template_fd);
int guest_memory_reset(const struct guest_memory *memory);
void guest_memory_forget(struct guest_memory *memory);

#endif
