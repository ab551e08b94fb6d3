/*
 * The sources of an ELF: memory (tests, fuzzers, images passed as bytes), a file, and a file that
 * is read through a window, for a caller that reads many small pieces of it.
 *
 * The rule: read_at() reads everything that was asked for, or stops at the end of the data, or
 * fails. A caller never has to loop. Every offset is valid, however large: past the end there are
 * no bytes.
 */
#define _GNU_SOURCE /* SEEK_DATA */

#include <errno.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "elf_image.h"

_Static_assert(sizeof(off_t) == sizeof(int64_t), "offsets of a file are 64 bits");
_Static_assert(sizeof(size_t) == sizeof(uint64_t), "lengths are 64 bits");

static int64_t memory_read_at(const struct byte_source *self, uint64_t offset, void *to, size_t len)
{
    if (len == 0 || offset >= self->size)
        return 0;

    uint64_t left = self->size - offset;
    size_t count = len < left ? len : (size_t)left;
    memcpy(to, (const uint8_t *)self->bytes + offset, count);
    return (int64_t)count;
}

static int64_t file_read_at(const struct byte_source *self, uint64_t offset, void *to, size_t len)
{
    if (offset > INT64_MAX)
        return 0;
    if (len > INT64_MAX - offset)
        len = (size_t)(INT64_MAX - offset);

    /* One pread returns at most 0x7ffff000 bytes (pread(2)), so large segments take several. */
    size_t count = 0;
    while (count < len) {
        ssize_t got = pread(self->fd, (uint8_t *)to + count, len - count, (off_t)(offset + count));
        if (got == 0)
            break;
        if (got < 0) /* EINTR too, so that a signal ends a read of a file system that does not answer */
            return -errno;
        count += (size_t)got;
    }
    return (int64_t)count;
}

static bool file_data_in(const struct byte_source *self, uint64_t offset, uint64_t end, uint64_t *start,
                         uint64_t *stop)
{
    *start = offset;
    *stop = end;
    if (end > INT64_MAX)
        return true;
    const off_t data = lseek(self->fd, (off_t)offset, SEEK_DATA);
    if (data < 0) /* ENXIO: no data from here to the end of the file; any other error: it is unknown */
        return errno != ENXIO;
    if ((uint64_t)data >= end)
        return false;
    const off_t hole = lseek(self->fd, data, SEEK_HOLE);
    *start = (uint64_t)data;
    if (hole > data && (uint64_t)hole < end)
        *stop = (uint64_t)hole;
    return true;
}

/*
 * Reads a piece from the window, and moves the window if the piece does not lie in it. A large
 * piece, or one that crosses the end of a window, is read from the file.
 */
static int64_t window_read_at(const struct byte_source *self, uint64_t offset, void *to, size_t len)
{
    struct byte_window *window = self->window;
    const uint64_t start = offset - offset % sizeof window->bytes;
    if (len <= 1 || len > sizeof window->bytes - (offset - start))
        return file_read_at(self, offset, to, len);
    if (!window->held || window->start != start) {
        window->held = 0;
        const int64_t got = file_read_at(self, start, window->bytes, sizeof window->bytes);
        if (got < 0)
            return got;
        window->start = start;
        window->held = (size_t)got;
    }
    if (offset - start >= window->held)
        return 0;
    const size_t left = window->held - (size_t)(offset - start), count = len < left ? len : left;
    memcpy(to, window->bytes + (offset - start), count);
    return (int64_t)count;
}

struct byte_source byte_source_window(struct byte_window *window, int fd)
{
    window->held = 0;
    return (struct byte_source){.read_at = window_read_at, .window = window, .fd = fd};
}

struct byte_source byte_source_memory(const void *bytes, size_t size)
{
    return (struct byte_source){.read_at = memory_read_at, .bytes = bytes, .size = size, .fd = -1};
}

struct byte_source byte_source_file(int fd)
{
    return (struct byte_source){.read_at = file_read_at, .data_in = file_data_in, .fd = fd};
}
