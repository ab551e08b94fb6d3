/*
 * Blocks in and out, one hypercall each. The tender checks the range against the device; that offset and
 * length are whole blocks is checked here, because the ABI leaves it to the guest.
 */
#include "kernel.h"

enum guest_result block_open(const char *name, struct block_device *device)
{
    const struct mft_entry *entry = manifest_entry(name, MFT_BLOCK_BASIC, &device->handle);
    if (!entry || entry->u.block.block_size == 0) {
        return GUEST_EINVAL;
    }
    device->capacity = entry->u.block.capacity;
    device->block_size = entry->u.block.block_size;
    return GUEST_OK;
}

static bool range_is_whole_blocks(const struct block_device *device, uint64_t offset, size_t len)
{
    return len != 0 && len % device->block_size == 0 && offset % device->block_size == 0;
}

enum guest_result block_read(const struct block_device *device, uint64_t offset, void *data, size_t len)
{
    if (!range_is_whole_blocks(device, offset, len)) {
        return GUEST_EINVAL;
    }
    struct hvt_block_read call = {
        .handle = device->handle, .offset = offset, .data = gpa_of(data), .len = len};
    gate_block_read(&call);
    return (enum guest_result)call.ret;
}

enum guest_result block_write(const struct block_device *device, uint64_t offset, const void *data,
                              size_t len)
{
    if (!range_is_whole_blocks(device, offset, len)) {
        return GUEST_EINVAL;
    }
    struct hvt_block_write call = {
        .handle = device->handle, .offset = offset, .data = gpa_of(data), .len = len};
    gate_block_write(&call);
    return (enum guest_result)call.ret;
}
