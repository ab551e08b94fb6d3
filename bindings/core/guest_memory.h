/*
 * Conversion of a guest-physical address and a length to a host-virtual address. No other file
 * converts.
 *
 * A guest may name any number. A range [gpa, gpa + len) is valid for reading if all of these hold:
 * it lies in the guest's memory, no segment of the image there forbids reading, and it begins where
 * the guest itself can read, above the 64 KiB that are not present in its page tables. It is valid
 * for writing if it also lies above the low mebibyte (page tables, boot info) and in no segment
 * that is not writable. The host's mapping has the same rights, by mprotect. So an access that this
 * check failed to refuse would be EFAULT in a system call, never a write.
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
    uint64_t bytes;        /* M: the guest may name addresses below it */
    uint64_t mapped_bytes; /* A: M, and the network ring's area after it */
    uint64_t template_bytes;
    uint8_t *template; /* NULL: this memory is not reset */
    int pagemap_fd;
    uint32_t range_count;
    struct guest_range ranges[GUEST_RANGES_MAX]; /* ascending, disjoint */
    struct entry_listener *listener;             /* entered.h; NULL: there is no listener */
    gpa_t open_start;    /* the open part: from here to the end of `bytes`, the guest may read and write */
    uint64_t open_bytes; /* the length of the open part; 0: it was not determined */
};

/*
 * Returns the PROT_... bits for a mapping of memory with these SEGMENT_... flags, without
 * execution, which only a backend may give.
 */
static inline int guest_protection(uint32_t flags)
{
    int protection = PROT_NONE;
    if (flags & (SEGMENT_READ | SEGMENT_EXEC))
        protection |= PROT_READ; /* text can be read, whatever protection keys the processor has */
    if (flags & SEGMENT_WRITE)
        protection |= PROT_READ | PROT_WRITE; /* x86 has no write-only page */
    return protection;
}

/*
 * Where transparent huge pages are always on, the first access to a 2 MiB page clears all of it.
 * That is as much work as the rest of a small guest's boot, and ten times the memory that such a
 * guest keeps. So the image and a small heap after it have small pages, up to the address that this
 * function returns. The top of memory, where the stack begins, has small pages too. A large heap
 * may have huge pages.
 */
static inline gpa_t guest_small_pages_end(gpa_t image_end, uint64_t mem_bytes)
{
    const gpa_t end = image_end + (16u << 20);
    return end < mem_bytes ? end & ~(gpa_t)(HVT_MEM_GRANULE - 1) : mem_bytes;
}

enum guest_access { GUEST_READABLE, GUEST_WRITABLE };

/*
 * Determines the open part, once the ranges are final. A caller that changes `bytes` or `ranges`
 * must set `open_bytes` to 0 first.
 */
void guest_memory_ranges_set(struct guest_memory *memory);

/* The part of guest_memory_at() for a range that does not lie completely in the open part. */
void *guest_memory_in_ranges(const struct guest_memory *memory, gpa_t gpa, uint64_t len,
                             enum guest_access access);

/*
 * Returns the host address of [gpa, gpa + len), or NULL if the guest may not use that range for
 * this access. A `len` of 0 is valid up to M; the caller must then not use the returned address.
 * Handlers call guest_bytes_at(), or guest_buffer_at() (entered.h) for memory that they fill.
 */
static inline void *guest_memory_at(const struct guest_memory *memory, gpa_t gpa, uint64_t len,
                                    enum guest_access access)
{
    /* Guests nearly always name their data, heap or stack: then two comparisons suffice, without a loop. */
    const uint64_t at = gpa - memory->open_start; /* if gpa is below it, this wraps and is too large */
    if (at >= memory->open_bytes || len > memory->open_bytes - at)
        return guest_memory_in_ranges(memory, gpa, len, access);
    uint8_t *hva = memory->hva + gpa;
    if (!hva)
        __builtin_unreachable(); /* gpa is at least HVT_GUEST_MIN_GPA: callers need no test for NULL */
    return hva;
}

/* The same for memory that the caller only reads. */
static inline const void *guest_bytes_at(const struct guest_memory *memory, gpa_t gpa, uint64_t len)
{
    return guest_memory_at(memory, gpa, len, GUEST_READABLE);
}

/*
 * Maps `mapped_bytes` of guest memory, of which the guest may name the first `mem_bytes`. The pages
 * are zero and writable, and no memory is reserved for them. Returns 0 or -errno: -ENOEXEC if the
 * personality of the process makes every readable mapping executable. guest_memory_unmap() releases
 * the mapping.
 */
int guest_memory_reserve(struct guest_memory *memory, uint64_t mem_bytes, uint64_t mapped_bytes);

/*
 * Call it after the memory is filled: it gives each of the `range_count` pieces in `ranges` its
 * rights. The right to execute becomes the right to read, because the host never executes guest
 * memory. `image_end` is the end of what was loaded. Returns 0 or -errno; unmaps on failure.
 */
int guest_memory_protect(struct guest_memory *memory, gpa_t image_end);

void guest_memory_unmap(struct guest_memory *memory);

/*
 * For memory that will be reset (guest_reset.c). Call guest_memory_keep() once, before the first
 * run, with the descriptor that the memory was mapped from. guest_memory_reset() restores the
 * template's bytes and zeroes, with the same rights. guest_memory_unmap() calls
 * guest_memory_forget(). They return 0 or -errno.
 */
int guest_memory_keep(struct guest_memory *memory, int template_fd);
int guest_memory_reset(const struct guest_memory *memory);
void guest_memory_forget(struct guest_memory *memory);

#endif
