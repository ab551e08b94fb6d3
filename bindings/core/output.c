#define _GNU_SOURCE
#include "output.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define LOOK_NS 50000000

static ssize_t write_at_once(const struct output *output, const char *text, size_t length)
{
    const struct iovec piece = {(void *)(uintptr_t)text, length < PIPE_BUF ? length : PIPE_BUF};
    if (output->is_socket)
        return send(output->fd, text, piece.iov_len, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (output->is_pipe) {
        const ssize_t written = pwritev2(output->fd, &piece, 1, -1, RWF_NOWAIT);
        if (written >= 0 || (errno != EOPNOTSUPP && errno != ENOSYS))
            return written;
    }
    return write(output->fd, text, piece.iov_len);
}

int output_write(const struct output *output, const char *text, size_t length, volatile size_t *at,
                 bool (*is_over)(uint64_t until_ns), uint64_t until_ns)
{
    const struct timespec look = {0, LOOK_NS};
    while (*at < length) {
        struct pollfd room = {output->fd, POLLOUT, 0};
        if (ppoll(&room, 1, &look, NULL) > 0) {
            const ssize_t written = write_at_once(output, text + *at, length - *at);
            if (written > 0)
                *at += (size_t)written;
            if (written >= 0)
                continue;
            if (errno != EAGAIN && errno != EINTR)
                return -errno;
            if (errno == EAGAIN) /* somebody else took the room, or it was too little */
                (void)ppoll(NULL, 0, &look, NULL);
        }
        if (is_over(until_ns))
            return -EAGAIN;
    }
    return 0;
}
