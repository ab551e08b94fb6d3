/*
 * A mapping of a disk's file, so that a request is a copy and not a system call.
 *
 * It only makes pread() and pwrite() faster, and serves fewer cases. They transfer what it leaves
 * undone, and report the errors that the guest sees. It serves:
 *
 *   reads    of pages that this VM read or wrote before: they are in the host's cache. Other pages
 *            are read with pread(), which reads ahead where a guest reads a disk in order, and not
 *            elsewhere
 *   writes   of pages that this VM wrote since the last flush: the file system has space for them.
 *            The first write of a page is a pwrite(). So no page is read only to be overwritten,
 *            and a lack of space is the error of a system call
 *
 * When memory is short, the host first gives up the pages that were used longest ago. A fault for
 * such a page reads far more than was requested. So this file forgets all pages when it has noted
 * as many as a fixed part of the host's memory holds, and then notes them again as they are used.
 *
 * Another process may change the file, so that a noted page no longer exists. A copy from or to
 * such a page ends early (guarded_copy.S). Only whole pages are mapped. If the disk ends inside a
 * page, that page is never served from here.
 */
#ifndef TENDER_DISK_MAP_H
#define TENDER_DISK_MAP_H

#include <stdbool.h>
#include <stdint.h>

struct disk_map {
    uint8_t *hva;         /* NULL: not mapped, and nothing is ever served */
    uint64_t bytes;       /* whole pages */
    uint64_t *cached;     /* one bit per page: it was read or written */
    uint64_t *dirty;      /* one bit per page: it was written since the last flush */
    uint64_t dirty_start; /* the range of words of `dirty` that may have bits set */
    uint64_t dirty_end;
    uint64_t pages_noted; /* since all pages were last forgotten */
    uint32_t page_limit;
};

/*
 * Returns how many pages of this descriptor's file may be noted at a time; 0: requests must not be
 * served by copies. That is so if the descriptor was opened with a flag that a copy cannot honour
 * (O_DIRECT, O_SYNC, O_APPEND), or if a mapping of the file does not behave like a read. For the
 * process that holds the VM.
 */
uint32_t disk_mappable_pages(int fd, bool read_only);

/*
 * The maximum number of bytes that a VM maps of all its disks together, starting with the first
 * disk. A page of a mapping that was accessed once keeps its page table, 8 bytes for each 4096
 * bytes around it, until the mapping ends. Without this limit, a guest that reads a sparse disk at
 * many places would take gigabytes. With it, all page tables together take at most 32 MiB.
 */
#define DISK_MAPPED_BYTES_MAX ((uint64_t)16 << 30)

/*
 * Maps the whole pages of `capacity`, up to `*budget` bytes, and subtracts the mapped bytes from
 * it. Unless `read_only`, the mapping is writable too. It is not an error if something cannot be
 * mapped. disk_map_close() ends the mapping, and may also be called if there is none.
 */
void disk_map_open(struct disk_map *map, int fd, uint64_t capacity, bool read_only, uint32_t page_limit,
                   uint64_t *budget);
void disk_map_close(struct disk_map *map);

/*
 * Copies [offset, offset + len), which must lie in the disk, between the disk and `data`: as many
 * bytes from the start of the range as it can serve. Returns their number.
 */
uint64_t disk_map_copy(const struct disk_map *map, bool writing, void *data, uint64_t len, uint64_t offset);

/* Notes that a system call has read or written this range. */
void disk_map_note(struct disk_map *map, bool writing, uint64_t len, uint64_t offset);

/* Returns how many bytes from the start of this range are known to be in the host's cache. */
uint64_t disk_map_cached(const struct disk_map *map, uint64_t len, uint64_t offset);

/* Notes that all written data is on the medium: the next write of each page counts as the first again. */
void disk_map_flushed(struct disk_map *map);

#endif
