/* Writes text without waiting for its reader; output.h has the contract. */
#define _GNU_SOURCE
#include "output.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define LOOK_NS 50000000

static size_t piece_of(size_t length)
{
    return length < PIPE_BUF ? length : PIPE_BUF; /* a pipe takes this many bytes in one piece */
}

static ssize_t write_at_once(const struct output *output, const char *text, size_t length)
{
    const struct iovec piece = {(void *)(uintptr_t)text, length};
    if (output->is_socket)
        return send(output->fd, text, piece.iov_len, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (output->is_pipe) {
        const ssize_t written = pwritev2(output->fd, &piece, 1, -1, RWF_NOWAIT);
        if (written >= 0 || (errno != EOPNOTSUPP && errno != ENOSYS))
            return written;
    }
    return write(output->fd, text, piece.iov_len);
}

int output_write(const struct output *output, const char *text, size_t length,
                 struct output_progress *progress, bool (*is_over)(uint64_t until_ns), uint64_t until_ns)
{
    const struct timespec look = {0, LOOK_NS};
    while (progress->done < length) {
        struct pollfd writable = {output->fd, POLLOUT, 0};
        if (ppoll(&writable, 1, &look, NULL) > 0) {
            progress->asked = piece_of(length - progress->done);
            const ssize_t written = write_at_once(output, text + progress->done, progress->asked);
            if (written > 0)
                progress->done += (size_t)written;
            progress->asked = 0;
            if (written > 0)
                continue;
            if (written == 0) /* the file never takes more, for example /proc/PID/mem of an ended program */
                return -EIO;
            if (errno != EAGAIN && errno != EINTR)
                return -errno;
            if (errno == EAGAIN) /* another writer filled it, or there was too little space */
                (void)ppoll(NULL, 0, &look, NULL);
        }
        if (is_over(until_ns))
            return -EAGAIN;
    }
    return 0;
}
