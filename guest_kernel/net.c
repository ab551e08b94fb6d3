/* Frames in and out, one hypercall each. The host's shared ring, if it offers one, is left alone. */
#include "kernel.h"

enum guest_result net_open(const char *name, struct net_device *device)
{
    const struct mft_entry *entry = manifest_entry(name, MFT_NET_BASIC, &device->handle);
    if (!entry) {
        return GUEST_EINVAL;
    }
    memcpy(device->mac, entry->u.net.mac, sizeof(device->mac));
    device->mtu = entry->u.net.mtu;
    return GUEST_OK;
}

enum guest_result net_write(const struct net_device *device, const void *frame, size_t len)
{
    struct hvt_net_write call = {.handle = device->handle, .data = gpa_of(frame), .len = len};
    gate_net_write(&call);
    return (enum guest_result)call.ret;
}

enum guest_result net_read(const struct net_device *device, void *frame, size_t size, size_t *len)
{
    struct hvt_net_read call = {.handle = device->handle, .data = gpa_of(frame), .len = size};
    gate_net_read(&call);
    if (call.ret == HVT_R_OK) {
        *len = call.len;
    }
    return (enum guest_result)call.ret;
}
