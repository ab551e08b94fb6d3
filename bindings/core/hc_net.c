/*
 * net_write and net_read: one frame a call, straight between guest memory and the descriptor.
 *
 * A frame that cannot be sent now (queue full, interface down, too short for the kernel) is dropped and
 * counted, as a wire would; the guest goes on. A device whose other end is gone reads as empty for ever and
 * leaves the poll set, so that a guest does not spin on it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hypercall.h"

#define FRAME_MAX 65553u /* 64 KiB - 1 of MTU, the Ethernet header and a VLAN tag */

static struct vm_device *net_device(struct vm *vm, uint64_t handle)
{
    if (handle >= vm->device_end || vm->devices[handle].type != MFT_NET_BASIC)
        return NULL;
    return &vm->devices[handle];
}

enum verdict hc_net_write(struct vm *vm, union hypercall_args *args)
{
    struct hvt_net_write *call = &args->net_write;
    struct vm_counters *counters = &vm->shared->counters;
    const struct vm_device *device = net_device(vm, call->handle);
    if (!device) {
        call->ret = HVT_R_EINVAL;
        return CONTINUE;
    }
    const void *data = guest_memory_at(&vm->memory, call->data, call->len, GUEST_READABLE);
    if (!data)
        return leave_bad_access(vm, call->data, call->len);
    if (call->len > FRAME_MAX) {
        call->ret = HVT_R_EINVAL;
        return CONTINUE;
    }
    int64_t sent;
    if (device->is_socket) {
        sent = send(device->fd, data, call->len, MSG_DONTWAIT | MSG_NOSIGNAL);
    } else {
        sent = write_quietly(device->fd, data, call->len);
    }
    if (sent >= 0 && (uint64_t)sent == call->len) {
        counters->net_tx_packets++;
        counters->net_tx_bytes += call->len;
    } else {
        counters->net_tx_drops++;
    }
    call->ret = HVT_R_OK;
    return CONTINUE;
}

enum verdict hc_net_read(struct vm *vm, union hypercall_args *args)
{
    struct hvt_net_read *call = &args->net_read;
    struct vm_counters *counters = &vm->shared->counters;
    struct vm_device *device = net_device(vm, call->handle);
    if (!device) {
        call->ret = HVT_R_EINVAL;
        return CONTINUE;
    }
    void *data = guest_memory_at(&vm->memory, call->data, call->len, GUEST_WRITABLE);
    if (!data)
        return leave_bad_access(vm, call->data, call->len);
    call->ret = HVT_R_AGAIN;
    if (device->gone || !call->len)
        return CONTINUE;
    ssize_t got = read(device->fd, data, call->len < FRAME_MAX ? call->len : FRAME_MAX);
    if (got > 0) {
        counters->net_rx_packets++;
        counters->net_rx_bytes += (uint64_t)got;
        call->len = (uint64_t)got;
        call->ret = HVT_R_OK;
    } else if (got == 0) {
        device->gone = true;
    } else if (errno != EAGAIN && errno != EINTR) {
        counters->net_rx_errors++;
        device->gone = errno == EBADFD || errno == ECONNRESET; /* the interface was deleted */
    }
    return CONTINUE;
}
