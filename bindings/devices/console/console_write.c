/*
 * Writes the guest's console output. All bytes are written in order, or counted as lost. Nothing
 * that happens to the reader makes the guest fail.
 *
 * The descriptor is the caller's and may be shared and blocking, so its flags are not changed. No
 * write may block, because a full pipe could then delay vm_stop() without limit. A ppoll() that
 * reports space is not enough, because another writer may take that space. So each write is one
 * that does not wait: RWF_NOWAIT on a pipe, MSG_DONTWAIT on a socket, and for a terminal a
 * description of our own with O_NONBLOCK. console.c finds out once which of these it is. Where the
 * kernel has none of these, a write has at most the number of bytes for which ppoll() guarantees
 * space to a single writer: PIPE_BUF bytes on a pipe (pipe(7)).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "console.h"
#include "hypercall.h"

#define FULL_PAUSE_NS 10000000 /* the pause when ppoll() reports space, but too little */

static int64_t write_some(struct vm *vm, const uint8_t *data, uint64_t len)
{
    if (vm->console.is_socket) {
        ssize_t sent = send(vm->console.fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);
        return sent < 0 ? -errno : sent;
    }
    if (vm->console.nowait) {
        const struct iovec piece = {(void *)(uintptr_t)data, len};
        ssize_t written = pwritev2(vm->console.fd, &piece, 1, -1, RWF_NOWAIT);
        if (written >= 0)
            return written;
        if (errno == EAGAIN)
            return -EAGAIN;
        vm->console.nowait = false; /* EOPNOTSUPP, or an error that write() below will repeat */
    }
    return write_quietly(vm->console.fd, data, len < vm->console.chunk ? len : vm->console.chunk);
}

/*
 * Passes one piece at a time: a single write of a guest may be all of its memory, and Python copies
 * the bytes.
 */
static enum verdict exit_with_piece(struct vm *vm, gpa_t data, uint64_t len)
{
    struct vm_event *event = &vm->shared->event;
    uint64_t left = len - vm->resume.bytes_done;
    event->kind = EVENT_CONSOLE;
    event->gpa = data + vm->resume.bytes_done;
    event->len = left < CONSOLE_PIECE_MAX ? left : CONSOLE_PIECE_MAX;
    vm->resume.bytes_done += event->len;
    vm->resume.again = vm->resume.bytes_done < len;
    vm->shared->counters.console_bytes += event->len;
    return EXIT;
}

enum verdict console_write(struct vm *vm, gpa_t gpa, const uint8_t *data, uint64_t len)
{
    struct vm_counters *counters = &vm->shared->counters;
    if (!vm->shared->timeline.first_console && len)
        vm->shared->timeline.first_console = monotonic_ns();
    if (vm->console.fd == CONSOLE_PYTHON)
        return exit_with_piece(vm, gpa, len);
    while (vm->console.fd >= 0 && vm->resume.bytes_done < len) {
        struct pollfd wait[2] = {{vm->console.fd, POLLOUT, 0}, {vm->stop_fd, POLLIN, 0}};
        if (ppoll(wait, 2, NULL, &vm->poll_mask) < 0 || wait[1].revents)
            return exit_interrupted(vm);
        int64_t written = write_some(vm, data + vm->resume.bytes_done, len - vm->resume.bytes_done);
        if (written == -EAGAIN) {
            static const struct timespec pause = {0, FULL_PAUSE_NS};
            if (ppoll(wait + 1, 1, &pause, &vm->poll_mask) != 0)
                return exit_interrupted(vm);
            continue;
        }
        if (written == -EINTR)
            continue;
        if (written <= 0)
            break; /* closed, full, broken, or it takes no byte: that must not affect the guest */
        vm->resume.bytes_done += (uint64_t)written;
        counters->console_bytes += (uint64_t)written;
    }
    counters->console_lost_bytes += vm->console.fd == CONSOLE_DISCARD ? 0 : len - vm->resume.bytes_done;
    return CONTINUE;
}
