/* Networks, for whoever knows no kind of device: device_ops.h. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "device_ops.h"
#include "net_saved.h"
#include "ring.h"

#define LEFT_FRAMES_MAX 4096 /* more than an interface's queue has; a peer that floods it is not waited for */

/* What came by an interface for the last guest is not the next one's: one that is opened anew has none. A
 * socket stays its owner's, with what is in it. */
static void drop_frames(struct vm_device *device)
{
    uint8_t beginning[64]; /* the rest of a frame goes with it */
    device->gone = device->detached = device->drained = false;
    if (device->is_socket)
        return;
    for (uint32_t i = 0; i < LEFT_FRAMES_MAX; i++)
        if (read(device->fd, beginning, sizeof beginning) <= 0 && errno != EINVAL)
            break; /* EINVAL: a frame that the interface could not hand over, and it is gone */
}

static void reset(struct vm *vm)
{
    atomic_store(&vm->net_unsettled, false);
    vm->net_told = false;
    vm->net_look_ns = 0;
    for (uint32_t i = 0; i < vm->device_end; i++)
        if (vm->devices[i].type == MFT_NET_BASIC)
            drop_frames(&vm->devices[i]);
    if (vm->ring.shared)
        ring_offer(vm, vm->ring.shared, vm->ring.mode);
}

static bool may_detach(const struct vm_device *device)
{
    return !device->is_socket;
}

static void save(const struct vm_device *device, uint8_t to[DEVICE_SAVED_BYTES])
{
    struct net_saved saved = {device->offload, device->is_socket, device->has_header, device->link.named, ""};
    memcpy(saved.name, device->link.name, sizeof saved.name);
    memcpy(to, &saved, sizeof saved);
}

static void offer(struct vm *vm, uint8_t *room, uint32_t mode)
{
    ring_offer(vm, (struct hvt_net_ring *)(void *)room, mode);
}

static void prepare(struct vm *vm)
{
    if (vm->ring.shared)
        ring_worker_prepare(vm);
}

static int written_fd(const struct vm *vm)
{
    return vm->ring.has_worker ? vm->ring.wake_fd : -1;
}

extern const struct device_ops net_ops;
const struct device_ops net_ops = {
    .may_detach = may_detach,
    .save = save,
    .offer = offer,
    .prepare = prepare,
    .written_fd = written_fd,
    .end = ring_end,
    .stop = ring_worker_stop,
    .reset = reset,
};
