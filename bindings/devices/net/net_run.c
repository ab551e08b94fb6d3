#include <string.h>

#include "net_saved.h"

static void restore(struct vm_device *device, const uint8_t from[DEVICE_SAVED_BYTES])
{
    struct net_saved saved;
    memcpy(&saved, from, sizeof saved);
    device->is_socket = saved.is_socket;
    device->has_header = saved.has_header;
    device->offload = saved.offload;
    device->link.named = saved.named;
    memcpy(device->link.name, saved.name, sizeof saved.name);
}

extern const struct device_run_ops net_run_ops;
const struct device_run_ops net_run_ops = {.restore = restore};
