/*
 * Restores guest memory to the image's content, for a machine that runs another guest.
 *
 * To drop all pages is correct but expensive: each page that the next guest touches costs two
 * faults, one in this process and one in the page tables below the guest. So this file asks the
 * kernel which pages the last guest has (PAGEMAP_SCAN, Linux 6.7, which walks the existing page
 * tables, not all addresses). If they are few, they get their bytes back in place. If the kernel
 * does not have this ioctl, or the list is long, the other pages are dropped.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "entered.h"

#define RESTORED_BYTES_MAX                                                                                   \
    (64u * HVT_PAGE_BYTES) /* for each part of the kernel's list; beyond it, faults cost less */
#define REGIONS_MAX 64

/* From linux/fs.h of Linux 6.7, because the headers of an older system do not have it. */
#define SCAN_REQUEST  _IOWR('f', 16, struct scan)
#define PAGE_FILE     (1u << 2)
#define PAGE_PRESENT  (1u << 3)
#define PAGE_SWAPPED  (1u << 4)
#define PAGE_ZERO_PFN (1u << 5)

struct region {
    uint64_t start;
    uint64_t end;
    uint64_t categories;
};

struct scan {
    uint64_t size;
    uint64_t flags;
    uint64_t start;
    uint64_t end;
    uint64_t walk_end;
    uint64_t vec;
    uint64_t vec_len;
    uint64_t max_pages;
    uint64_t category_inverted;
    uint64_t category_mask;
    uint64_t category_anyof_mask;
    uint64_t return_mask;
};

/*
 * A range that is not writable was not written: neither by the guest, whatever its own page tables
 * contain, nor by the monitor. Its pages stay, so that the next run does not fault them in again.
 */
static int drop(const struct guest_memory *memory, gpa_t from, gpa_t end)
{
    for (uint32_t i = 0; i <= memory->range_count && from < end; i++) {
        const struct guest_range *range = i < memory->range_count ? &memory->ranges[i] : NULL;
        if (range && (range->flags & SEGMENT_WRITE || range->end <= from))
            continue;
        gpa_t to = range && range->start < end ? range->start : end;
        if (to > from && madvise(memory->hva + from, to - from, MADV_DONTNEED) < 0)
            return -errno;
        from = range ? range->end : end;
    }
    return 0;
}

static bool may_be_written(const struct guest_memory *memory, gpa_t from, gpa_t end)
{
    for (uint32_t i = 0; i < memory->range_count; i++)
        if (!(memory->ranges[i].flags & SEGMENT_WRITE) && memory->ranges[i].start < end &&
            from < memory->ranges[i].end)
            return false;
    return true;
}

static void restore(const struct guest_memory *memory, gpa_t from, gpa_t end)
{
    gpa_t in_template = end < memory->template_bytes ? end : memory->template_bytes;
    if (from < in_template) {
        memcpy(memory->hva + from, memory->template + from, in_template - from);
        from = in_template;
    }
    memset(memory->hva + from, 0, end - from);
}

/*
 * Finds the pages from `from` on of which the guest has its own copies. Returns the number of
 * regions, and in *next where to continue; or -errno.
 */
static int written_pages(const struct guest_memory *memory, gpa_t from, struct region *regions, gpa_t *next)
{
    struct scan scan = {
        .size = sizeof scan,
        .start = (uint64_t)(memory->hva + from),
        .end = (uint64_t)(memory->hva + memory->mapped_bytes),
        .vec = (uint64_t)regions,
        .vec_len = REGIONS_MAX,
        .category_inverted = PAGE_FILE | PAGE_ZERO_PFN,
        .category_mask = PAGE_FILE | PAGE_ZERO_PFN,
        .category_anyof_mask = PAGE_PRESENT | PAGE_SWAPPED,
        .return_mask = PAGE_PRESENT,
    };
    int count = ioctl(memory->pagemap_fd, SCAN_REQUEST, &scan);
    *next = scan.walk_end - (uint64_t)memory->hva;
    return count < 0 ? -errno : count;
}

int guest_memory_keep(struct guest_memory *memory, int template_fd)
{
    void *template = mmap(NULL, memory->template_bytes, PROT_READ, MAP_PRIVATE, template_fd, 0);
    if (template == MAP_FAILED)
        return -errno;
    (void)madvise(template, memory->template_bytes, MADV_DONTFORK);
    memory->template = template;
    memory->pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC); /* -1: there is no /proc */
    return 0;
}

void guest_memory_forget(struct guest_memory *memory)
{
    if (!memory->template)
        return;
    munmap(memory->template, memory->template_bytes);
    memory->template = NULL;
    if (memory->pagemap_fd >= 0)
        close(memory->pagemap_fd);
}

static int restore_pages(const struct guest_memory *memory)
{
    struct region regions[REGIONS_MAX];
    gpa_t at = 0;
    while (at < memory->mapped_bytes) {
        gpa_t next = at;
        int count = memory->pagemap_fd < 0 ? -ENOTTY : written_pages(memory, at, regions, &next);
        if (count < 0 || next <= at) /* the kernel does not have the ioctl, or makes no progress */
            return drop(memory, at, memory->mapped_bytes);
        uint64_t bytes = 0;
        for (int i = 0; i < count; i++) {
            gpa_t from = regions[i].start - (uint64_t)memory->hva,
                  end = regions[i].end - (uint64_t)memory->hva;
            bytes += end - from;
            if (bytes <= RESTORED_BYTES_MAX && may_be_written(memory, from, end)) {
                restore(memory, from, end);
                continue;
            }
            int error = drop(memory, from, end);
            if (error)
                return error;
        }
        at = next;
    }
    return 0;
}

int guest_memory_reset(const struct guest_memory *memory)
{
    const int error = restore_pages(memory);
    entered(memory, memory->hva, memory->mapped_bytes, ENTERED_START_STATE);
    return error;
}
