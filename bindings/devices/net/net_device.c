/* Networks, for whoever knows no kind of device: device_ops.h. */
#include <errno.h>
#include <unistd.h>

#include "device.h"
#include "net.h"
#include "ring.h"

#define LEFT_FRAMES_MAX 4096 /* more than an interface's queue has; a peer that floods it is not waited for */

/* What came by an interface for the last guest is not the next one's: one that is opened anew has none. A
 * socket stays its owner's, with what is in it. */
static void drop_frames(const struct vm_device *device)
{
    uint8_t beginning[64]; /* the rest of a frame goes with it */
    struct net_device *net = net_of(device);
    net->gone = net->detached = net->drained = false;
    if (net->is_socket)
        return;
    for (uint32_t i = 0; i < LEFT_FRAMES_MAX; i++)
        if (read(device->fd, beginning, sizeof beginning) <= 0 && errno != EINVAL)
            break; /* EINVAL: a frame that the interface could not hand over, and it is gone */
}

static void reset(struct vm *vm)
{
    struct net_vm *nets = net_vm(vm);
    atomic_store(&nets->needs_check, false);
    nets->told = false;
    nets->look_ns = 0;
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

/* Segments are no longer joined and cut: there is no space for large frames. */
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

/* The interfaces stay, with descriptors that others may have too. */
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
