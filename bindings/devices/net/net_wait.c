/* Waits until a network's descriptor is readable or the time is over. */
#define _GNU_SOURCE
#include <errno.h>
#include <time.h>

#include "net_frame.h"

#define NS_PER_S 1000000000u

static struct timespec until(uint64_t deadline_ns)
{
    uint64_t now_ns = monotonic_ns();
    uint64_t left_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 0;
    return (struct timespec){(time_t)(left_ns / NS_PER_S), (long)(left_ns % NS_PER_S)};
}

/*
 * Calls ppoll() once for all networks, and sets one bit per ready handle. A TAP whose interface was
 * deleted is noted and is not ready.
 */
static enum verdict poll_once(struct vm *vm, const struct timespec *timeout, bool held, uint64_t *ready_set)
{
    struct pollfd wait[MFT_MAX_ENTRIES + 1];
    nfds_t count = 0;
    uint32_t handles[MFT_MAX_ENTRIES + 1];
    for (uint32_t handle = 0; handle < vm->device_end; handle++) {
        const struct vm_device *device = &vm->devices[handle];
        if (is_net(device) && !atomic_load_explicit(&net_of(device)->gone, memory_order_relaxed) &&
            !atomic_load_explicit(&net_of(device)->detached, memory_order_relaxed)) {
            handles[count] = handle;
            wait[count++] = (struct pollfd){device->fd, POLLIN, 0};
        }
    }
    wait[count] = (struct pollfd){vm->stop_fd, POLLIN, 0};
    if (ppoll(wait, count + 1, timeout, &vm->poll_mask) < 0) {
        if (errno == EINTR)
            return exit_interrupted(vm);
        vm->shared->event.kind = EVENT_HOST_ERROR;
        vm->shared->event.os_error = errno;
        return EXIT;
    }
    if (wait[count].revents)
        return exit_interrupted(vm);
    *ready_set = 0;
    for (nfds_t i = 0; i < count; i++) {
        struct vm_device *device = &vm->devices[handles[i]];
        if (wait[i].revents & POLLERR && !net_of(device)->is_socket)
            net_note_detached(vm, device, &vm->shared->counters);
        /* errors and hang-ups count as ready too: the read that follows reports them */
        else if (wait[i].revents || (held && net_of(device)->segments))
            *ready_set |= (uint64_t)1 << handles[i];
    }
    return CONTINUE;
}

enum verdict net_wait(struct vm *vm, uint64_t timeout_ns, uint64_t *ready_set)
{
    const bool held = atomic_load_explicit(&net_vm(vm)->cut_left, memory_order_relaxed);
    const bool waits = timeout_ns && !held;
    if (waits && !vm->resume.poll_deadline_ns) {
        uint64_t now_ns = monotonic_ns();
        uint64_t limit_ns = UINT64_MAX - now_ns; /* 2^64 - 1 ns are five centuries: it must not overflow */
        vm->resume.poll_deadline_ns = now_ns + (timeout_ns < limit_ns ? timeout_ns : limit_ns);
    }
    for (;;) {
        uint64_t until_ns = vm->resume.poll_deadline_ns;
        if (net_needs_check(vm)) {
            if (net_check_detached(vm) == EXIT)
                return EXIT;
            if (net_vm(vm)->next_report_ns < until_ns)
                until_ns = net_vm(vm)->next_report_ns;
        }
        const struct timespec timeout = waits ? until(until_ns) : (struct timespec){0, 0};
        if (poll_once(vm, &timeout, held, ready_set) == EXIT)
            return EXIT;
        /* otherwise the wait was short, or ended, because of a deleted interface */
        if (*ready_set || !net_needs_check(vm) || !waits || monotonic_ns() >= vm->resume.poll_deadline_ns)
            return CONTINUE;
    }
}
