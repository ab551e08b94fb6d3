/* The interface of networks to code that knows no kind of device: device_ops.h. */
#include <errno.h>
#include <unistd.h>

#include "device.h"
#include "net.h"
#include "ring.h"

/* More than an interface's queue has. It bounds the loop below if a peer keeps sending. */
#define LEFT_FRAMES_MAX 4096

/*
 * Drops the frames that an interface received for the last guest, so that the next guest finds
 * none, as with a newly opened interface. A socket belongs to its owner, so its content stays.
 */
static void drop_frames(const struct vm_device *device)
{
    uint8_t beginning[64]; /* a read of the beginning drops the whole frame */
    struct net_device *net = net_of(device);
    net->gone = net->detached = net->drained = false;
    if (net->is_socket)
        return;
    for (uint32_t i = 0; i < LEFT_FRAMES_MAX; i++)
        if (read(device->fd, beginning, sizeof beginning) <= 0 && errno != EINVAL)
            break; /* EINVAL: the interface could not pass on a frame, and dropped it */
}

static void reset(struct vm *vm)
{
    struct net_vm *nets = net_vm(vm);
    atomic_store(&nets->needs_check, false);
    nets->reported = false;
    nets->next_report_ns = 0;
    for (uint32_t i = 0; i < vm->device_end; i++)
        if (is_net(&vm->devices[i]))
            drop_frames(&vm->devices[i]);
    if (nets->ring.shared)
        ring_offer(vm, nets->ring.shared, nets->ring.mode);
}

static bool may_detach(const struct vm_device *device)
{
    return !net_of(device)->is_socket;
}

/* Stops joining and cutting segments, because there is no space for large frames. */
static void leave_segments(struct vm *vm)
{
    for (uint32_t i = 0; i < vm->device_end; i++)
        if (is_net(&vm->devices[i]) && net_of(&vm->devices[i])->segments) {
            net_leave_header(vm->devices[i].fd);
            net_of(&vm->devices[i])->segments = false;
        }
}

static void offer(struct vm *vm, void *area, uint32_t mode)
{
    if (!area)
        leave_segments(vm);
    ring_offer(vm, area, mode);
}

static void prepare(struct vm *vm)
{
    if (net_vm(vm)->ring.shared)
        ring_worker_prepare(vm);
}

static int written_fd(const struct vm *vm)
{
    return net_vm(vm)->ring.has_worker ? net_vm(vm)->ring.wake_fd : -1;
}

bool net_is_wanted_again(const struct vm_device *device)
{
    return is_net(device) && net_of(device)->link.again;
}

/*
 * The interfaces go on existing, and other processes may have their descriptors, so offloads are
 * switched off.
 */
static void release(struct vm *vm)
{
    net_leave_headers(vm);
}

const struct device_ops net_ops = {
    .cannot = "Could not attach interface",
    .open = net_open,
    .attach = net_attach,
    .may_detach = may_detach,
    .offer = offer,
    .prepare = prepare,
    .written_fd = written_fd,
    .end = ring_end,
    .stop = ring_worker_stop,
    .reset = reset,
    .release = release,
};
