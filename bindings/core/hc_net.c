/*
 * One frame straight between guest memory and a descriptor: by a hypercall, as one of a batch
 * (hc_net_batch.c), or by an entry of the ring (ring.c), with the same rules.
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
#include "net_frame.h"

#define FRAME_MAX 65553u /* 64 KiB - 1 of MTU, the Ethernet header and a VLAN tag */

struct vm_device *net_device(struct vm *vm, uint64_t handle)
{
    if (handle >= vm->device_end || vm->devices[handle].type != MFT_NET_BASIC)
        return NULL;
    return &vm->devices[handle];
}

int32_t net_send(struct vm *vm, struct vm_counters *counters, uint64_t handle, gpa_t gpa, uint64_t len)
{
    const struct vm_device *device = net_device(vm, handle);
    if (!device)
        return HVT_R_EINVAL;
    const void *data = guest_memory_at(&vm->memory, gpa, len, GUEST_READABLE);
    if (!data)
        return NET_BAD_RANGE;
    if (len > FRAME_MAX)
        return HVT_R_EINVAL;
    int64_t sent;
    if (device->is_socket) {
        sent = send(device->fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);
    } else {
        sent = write_quietly(device->fd, data, len);
    }
    if (sent >= 0 && (uint64_t)sent == len) {
        counters->net_tx_packets++;
        counters->net_tx_bytes += len;
    } else {
        counters->net_tx_drops++;
    }
    return HVT_R_OK;
}

int32_t net_receive(struct vm *vm, struct vm_counters *counters, uint64_t handle, gpa_t gpa, uint64_t *len)
{
    struct vm_device *device = net_device(vm, handle);
    if (!device)
        return HVT_R_EINVAL;
    void *data = guest_memory_at(&vm->memory, gpa, *len, GUEST_WRITABLE);
    if (!data)
        return NET_BAD_RANGE;
    if (atomic_load_explicit(&device->gone, memory_order_relaxed) || !*len)
        return HVT_R_AGAIN;
    ssize_t got = read(device->fd, data, *len < FRAME_MAX ? *len : FRAME_MAX);
    if (got > 0) {
        counters->net_rx_packets++;
        counters->net_rx_bytes += (uint64_t)got;
        *len = (uint64_t)got;
        return HVT_R_OK;
    }
    bool gone = got == 0;
    if (got < 0 && errno != EAGAIN && errno != EINTR) {
        counters->net_rx_errors++;
        gone = errno == EBADFD || errno == ECONNRESET; /* the interface was deleted */
    }
    if (gone)
        atomic_store_explicit(&device->gone, true, memory_order_relaxed);
    return HVT_R_AGAIN;
}

enum verdict hc_net_write(struct vm *vm, union hypercall_args *args)
{
    struct hvt_net_write *call = &args->net_write;
    call->ret = net_send(vm, &vm->shared->counters, call->handle, call->data, call->len);
    return call->ret == NET_BAD_RANGE ? leave_bad_access(vm, call->data, call->len) : CONTINUE;
}

enum verdict hc_net_read(struct vm *vm, union hypercall_args *args)
{
    struct hvt_net_read *call = &args->net_read;
    call->ret = net_receive(vm, &vm->shared->counters, call->handle, call->data, &call->len);
    return call->ret == NET_BAD_RANGE ? leave_bad_access(vm, call->data, call->len) : CONTINUE;
}
