/* The guest's side of a TAP whose interface was deleted; net_frame.h has the contract. */
#define _GNU_SOURCE
#include <poll.h>

#include "net_frame.h"

#define REPORT_NS 200000000u /* from one EVENT_NETWORK to the next */

__attribute__((cold)) void net_note_detached(struct vm *vm, struct vm_device *device,
                                             struct vm_counters *counters)
{
    if (atomic_exchange(&net_of(device)->detached, true))
        return;
    counters->net_detached++;
    atomic_store(&net_vm(vm)->needs_check, true);
}

static bool is_detached(const struct vm *vm, const struct vm_device *device)
{
    static const struct timespec at_once = {0, 0};
    struct pollfd end = {device->fd, POLLIN, 0};
    return ppoll(&end, 1, &at_once, &vm->poll_mask) == 1 && end.revents & POLLERR;
}

/*
 * Checks which of the detached TAPs have an interface again. Returns true if one has: the holder of
 * the VM must then be told.
 */
static bool find_attached(struct vm *vm)
{
    bool found = false, left = false;
    atomic_store(&net_vm(vm)->needs_check, false); /* first: the ring's worker may find one meanwhile */
    for (uint32_t handle = 0; handle < vm->device_end; handle++) {
        struct vm_device *device = &vm->devices[handle];
        if (!is_net(device) || !atomic_load(&net_of(device)->detached))
            continue;
        if (is_detached(vm, device)) {
            left = true;
            continue;
        }
        atomic_store(&net_of(device)->detached, false);
        vm->shared->counters.net_attached++;
        found = true;
    }
    if (left || found)
        atomic_store(&net_vm(vm)->needs_check, true);
    return found;
}

__attribute__((cold)) enum verdict net_check_detached(struct vm *vm)
{
    struct net_vm *nets = net_vm(vm);
    const uint64_t now_ns = monotonic_ns();
    if (nets->reported) {
        nets->reported = false;
        nets->next_report_ns = find_attached(vm) ? 0 : now_ns + REPORT_NS;
    }
    if (!net_needs_check(vm) || now_ns < nets->next_report_ns)
        return CONTINUE;
    nets->reported = true;
    vm->shared->event.kind = EVENT_NETWORK;
    vm->resume.again = true;
    return EXIT;
}
