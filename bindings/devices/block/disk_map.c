/* A mapped disk. disk_map.h describes which requests it serves. */
#define _GNU_SOURCE
#include "disk_map.h"

#include <string.h>
#include <sys/mman.h>

#include "guarded_copy.h"
#include "tender_abi.h"

#define WORD_BITS  64u
#define COPY_BYTES 8u /* the unit of guarded_copy() */

static uint64_t pages_of(uint64_t bytes)
{
    return (bytes + HVT_PAGE_BYTES - 1) / HVT_PAGE_BYTES;
}

void disk_map_open(struct disk_map *map, int fd, uint64_t capacity, bool read_only, uint32_t page_limit,
                   uint64_t *budget)
{
    *map = (struct disk_map){0};
    const uint64_t pages = (capacity < *budget ? capacity : *budget) / HVT_PAGE_BYTES,
                   bytes = pages * HVT_PAGE_BYTES;
    if (!pages)
        return;
    const uint64_t words = (pages + WORD_BITS - 1) / WORD_BITS;
    void *bits = mmap(NULL, 2 * words * sizeof(uint64_t), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (bits == MAP_FAILED)
        return;
    void *hva = mmap(NULL, bytes, PROT_READ | (read_only ? 0 : PROT_WRITE), MAP_SHARED, fd, 0);
    if (hva == MAP_FAILED) {
        (void)munmap(bits, 2 * words * sizeof(uint64_t));
        return;
    }
    map->hva = hva;
    map->bytes = bytes;
    map->cached = bits;
    map->dirty = map->cached + words;
    map->page_limit = page_limit;
    *budget -= bytes;
}

void disk_map_close(struct disk_map *map)
{
    if (map->hva) {
        (void)munmap(map->hva, map->bytes);
        (void)munmap(map->cached, (size_t)(map->dirty - map->cached) * 2 * sizeof(uint64_t));
    }
    *map = (struct disk_map){0};
}

/* Returns how many bytes from the start of the range lie in pages that have their bit set. */
static uint64_t bytes_noted(const struct disk_map *map, const uint64_t *bits, uint64_t len, uint64_t offset)
{
    if (offset >= map->bytes)
        return 0;
    if (len > map->bytes - offset)
        len = map->bytes - offset;
    uint64_t page = offset / HVT_PAGE_BYTES;
    const uint64_t end = pages_of(offset + len);
    while (page < end) {
        const uint64_t missing = ~bits[page / WORD_BITS] >> page % WORD_BITS;
        if (missing) {
            page += (uint64_t)__builtin_ctzll(missing);
            break;
        }
        page += WORD_BITS - page % WORD_BITS;
    }
    const uint64_t until = page * HVT_PAGE_BYTES;
    return until >= offset + len ? len : until > offset ? until - offset : 0;
}

uint64_t disk_map_cached(const struct disk_map *map, uint64_t len, uint64_t offset)
{
    return bytes_noted(map, map->cached, len, offset);
}

uint64_t disk_map_copy(const struct disk_map *map, bool writing, void *data, uint64_t len, uint64_t offset)
{
    if ((offset | len) % COPY_BYTES) /* not whole sectors, which the ABI lets a guest request */
        return 0;
    const uint64_t *bits = writing ? map->dirty : map->cached;
    const uint64_t page = offset / HVT_PAGE_BYTES;
    uint64_t bytes = len;
    /* A guest's request is a sector or a page, so it nearly always lies in one page. */
    if (offset >= map->bytes || page != (offset + len - 1) / HVT_PAGE_BYTES) {
        bytes = bytes_noted(map, bits, len, offset);
        if (!bytes) /* if the range is not mapped, the address below does not exist */
            return 0;
    } else if (!(bits[page / WORD_BITS] >> page % WORD_BITS & 1))
        return 0;
    void *disk = map->hva + offset;
    const uint64_t left =
        guarded_copy(writing ? disk : data, writing ? data : disk, bytes / COPY_BYTES) * COPY_BYTES;
    return bytes - left;
}

static void set_bits(uint64_t *bits, uint64_t page, uint64_t end)
{
    while (page < end) {
        const uint64_t at = page % WORD_BITS, left = end - page;
        const uint64_t ones = left < WORD_BITS - at ? ((uint64_t)1 << left) - 1 : ~(uint64_t)0;
        bits[page / WORD_BITS] |= ones << at;
        page += WORD_BITS - at;
    }
}

void disk_map_note(struct disk_map *map, bool writing, uint64_t len, uint64_t offset)
{
    if (!len || offset >= map->bytes)
        return;
    if (len > map->bytes - offset)
        len = map->bytes - offset;
    const uint64_t page = offset / HVT_PAGE_BYTES, end = pages_of(offset + len);
    map->pages_noted += end - page;
    if (map->pages_noted > map->page_limit) {
        disk_map_flushed(map); /* this also clears the bits of written pages */
        memset(map->cached, 0, (size_t)(map->dirty - map->cached) * sizeof(uint64_t));
        map->pages_noted = end - page;
    }
    set_bits(map->cached, page, end);
    if (!writing)
        return;
    set_bits(map->dirty, page, end);
    const uint64_t first = page / WORD_BITS, last = (end - 1) / WORD_BITS + 1;
    if (map->dirty_start == map->dirty_end) {
        map->dirty_start = first;
        map->dirty_end = last;
        return;
    }
    if (first < map->dirty_start)
        map->dirty_start = first;
    if (last > map->dirty_end)
        map->dirty_end = last;
}

void disk_map_flushed(struct disk_map *map)
{
    if (map->dirty_end > map->dirty_start)
        memset(map->dirty + map->dirty_start, 0, (map->dirty_end - map->dirty_start) * sizeof(uint64_t));
    map->dirty_start = map->dirty_end = 0;
}
