/*
 * A disk's file, mapped, so that a request is a copy and not a system call.
 *
 * It only makes faster what pread() and pwrite() do, and does less: what it leaves undone is theirs, and
 * theirs is the error that the guest sees. It serves
 *
 *   reads    of pages that were read or written through us: they are in the host's cache. What is not comes
 *            by pread(), which reads ahead where a guest goes through a disk in order, and not elsewhere
 *   writes   of pages that were written through us since the last flush: space for them has been found. The
 *            first write of a page is a pwrite(), so nothing is read only to be overwritten, and that there
 *            is no space is an error of a system call
 *
 * What was used longest ago is the first that the host gives up when memory is short, and a fault for it
 * reads far more than was asked for. So after a part of the host's memory has been noted, all of it is
 * forgotten, and noted again as it is used.
 *
 * Both facts may have become false behind our back; a copy that fails for it ends early
 * (guarded_copy_x86_64.S). Only whole pages are mapped. What lies behind the disk's end in its last one is
 * nobody's: that part is never served from here.
 */
#ifndef TENDER_DISK_MAP_H
#define TENDER_DISK_MAP_H

#include <stdbool.h>
#include <stdint.h>

struct disk_map {
    uint8_t *hva;         /* NULL: not mapped, and nothing is ever served */
    uint64_t bytes;       /* whole pages */
    uint64_t *cached;     /* a bit a page: it was read or written */
    uint64_t *dirty;      /* a bit a page: it was written since the last flush */
    uint64_t dirty_start; /* the words of `dirty` that may have a bit */
    uint64_t dirty_end;
    uint64_t pages_noted; /* since all was forgotten last */
    uint32_t page_limit;
};

/*
 * Whether requests to this descriptor may be copies, and of how many pages that may be believed at a time; 0:
 * none. Not if it was opened for more than a copy gives (O_DIRECT, O_SYNC, O_APPEND), or where a mapping
 * means something else than a read. For the process that holds the VM.
 */
uint32_t disk_mappable_pages(int fd, bool read_only);

/*
 * How much of all its disks a VM has mapped at most, the first ones first. A page of a mapping that was
 * touched once keeps its page table, 8 bytes for each 4096 of what lies around it, until the end: a guest
 * that reads a sparse disk here and there would take gigabytes. Of this much, all tables together are 32
 * MiB.
 */
#define DISK_MAPPED_BYTES_MAX ((uint64_t)16 << 30)

/* Maps the whole pages of `capacity` as far as the `budget` reaches, and takes them from it; for writing too
 * unless it is read-only. What is not or cannot be mapped stays so, and that is no error. disk_map_close()
 * undoes it, and may be called without. */
void disk_map_open(struct disk_map *map, int fd, uint64_t capacity, bool read_only, uint32_t page_limit,
                   uint64_t *budget);
void disk_map_close(struct disk_map *map);

/* Copies [offset, offset + len) between the disk, which has that range, and `data`: as much from its
 * beginning as can be served. How many bytes. */
uint64_t disk_map_copy(const struct disk_map *map, bool writing, void *data, uint64_t len, uint64_t offset);

/* A system call has read or written this range. */
void disk_map_note(struct disk_map *map, bool writing, uint64_t len, uint64_t offset);

/* How many bytes from the beginning of this range are in the host's cache, as far as is known. */
uint64_t disk_map_cached(const struct disk_map *map, uint64_t len, uint64_t offset);

/* All that was written is on the disk: the next write of a page is the first again. */
void disk_map_flushed(struct disk_map *map);

#endif
