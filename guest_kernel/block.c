/*
 * Reads and writes blocks: one hypercall for each request, or one for many requests if the tender
 * grants the block batch. The tender checks the range against the device. This file checks that
 * offset and length are whole blocks, because the ABI leaves that check to the guest.
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

static enum guest_result submit_one(const struct tender_block_request *request)
{
    if (request->op == TENDER_BLOCK_READ) {
        struct hvt_block_read call = {
            .handle = request->handle, .offset = request->offset, .data = request->data, .len = request->len};
        gate_block_read(&call);
        return (enum guest_result)call.ret;
    }
    if (request->op == TENDER_BLOCK_WRITE) {
        struct hvt_block_write call = {
            .handle = request->handle, .offset = request->offset, .data = request->data, .len = request->len};
        gate_block_write(&call);
        return (enum guest_result)call.ret;
    }
    return GUEST_EUNSPEC; /* Solo5's ABI has no flush */
}

static void submit(struct tender_block_request *requests, uint32_t count)
{
    struct tender_block_batch call = {.requests = gpa_of(requests), .count = count};
    if (gate_block_batch(&call)) {
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        requests[i].ret = (int32_t)submit_one(&requests[i]);
    }
}

static bool is_valid(const struct tender_block_request *request)
{
    const struct mft *manifest = guest_manifest();
    if (request->handle >= manifest->entries || manifest->e[request->handle].type != MFT_BLOCK_BASIC ||
        !manifest->e[request->handle].attached) {
        return false;
    }
    const struct block_device device = {.handle = request->handle,
                                        .block_size = manifest->e[request->handle].u.block.block_size};
    if (device.block_size == 0) {
        return false;
    }
    return request->op == TENDER_BLOCK_FLUSH ||
           ((request->op == TENDER_BLOCK_READ || request->op == TENDER_BLOCK_WRITE) &&
            range_is_whole_blocks(&device, request->offset, request->len));
}

enum guest_result block_submit(struct tender_block_request *requests, size_t count)
{
    bool valid = true;
    for (size_t i = 0; i < count; i++) {
        bool this_one = is_valid(&requests[i]);
        requests[i].ret = this_one ? GUEST_AGAIN : GUEST_EINVAL;
        valid &= this_one;
    }
    if (!valid) {
        return GUEST_EINVAL;
    }
    for (size_t i = 0; i < count; i += TENDER_BLOCK_BATCH_MAX) {
        size_t rest = count - i;
        submit(requests + i, rest < TENDER_BLOCK_BATCH_MAX ? (uint32_t)rest : TENDER_BLOCK_BATCH_MAX);
    }
    for (size_t i = 0; i < count; i++) {
        if (requests[i].ret != GUEST_OK) {
            return (enum guest_result)requests[i].ret;
        }
    }
    return GUEST_OK;
}

enum guest_result block_flush(const struct block_device *device)
{
    struct tender_block_request request = {.op = TENDER_BLOCK_FLUSH, .handle = device->handle};
    return block_submit(&request, 1);
}
