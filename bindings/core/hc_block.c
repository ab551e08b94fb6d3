/*
 * block_write and block_read: one whole transfer a call. A host error (no space, medium, file cut short) is
 * the guest's to handle: it gets EUNSPEC and it is counted; the VM goes on.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <unistd.h>

#include "hypercall.h"

static const struct vm_device *block_device(const struct vm *vm, uint64_t handle)
{
    if (handle >= vm->device_end || vm->devices[handle].type != MFT_BLOCK_BASIC)
        return NULL;
    return &vm->devices[handle];
}

static bool range_is_valid(const struct vm_device *device, uint64_t offset, uint64_t len)
{
    return len <= INT64_MAX && offset < device->capacity && len <= device->capacity - offset;
}

enum verdict hc_block_write(struct vm *vm, union hypercall_args *args)
{
    struct hvt_block_write *call = &args->block_write;
    struct vm_counters *counters = &vm->shared.counters;
    const struct vm_device *device = block_device(vm, call->handle);
    call->ret = HVT_R_EINVAL;
    if (!device || !range_is_valid(device, call->offset, call->len))
        return CONTINUE;
    const uint8_t *data = guest_memory_at(&vm->memory, call->data, call->len, GUEST_READABLE);
    if (!data)
        return leave_bad_access(vm, call->data, call->len);
    call->ret = HVT_R_EUNSPEC;
    uint64_t done = 0;
    while (!device->read_only && done < call->len) {
        ssize_t n = pwrite(device->fd, data + done, call->len - done, (off_t)(call->offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        done += (uint64_t)n;
    }
    if (device->read_only || done < call->len) {
        counters->block_errors++;
        return CONTINUE;
    }
    counters->block_writes++;
    counters->block_write_bytes += done;
    call->ret = HVT_R_OK;
    return CONTINUE;
}

enum verdict hc_block_read(struct vm *vm, union hypercall_args *args)
{
    struct hvt_block_read *call = &args->block_read;
    struct vm_counters *counters = &vm->shared.counters;
    const struct vm_device *device = block_device(vm, call->handle);
    call->ret = HVT_R_EINVAL;
    if (!device || !range_is_valid(device, call->offset, call->len))
        return CONTINUE;
    uint8_t *data = guest_memory_at(&vm->memory, call->data, call->len, GUEST_WRITABLE);
    if (!data)
        return leave_bad_access(vm, call->data, call->len);
    uint64_t done = 0;
    while (done < call->len) {
        ssize_t n = pread(device->fd, data + done, call->len - done, (off_t)(call->offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        done += (uint64_t)n;
    }
    if (done < call->len) {
        counters->block_errors++;
        call->ret = HVT_R_EUNSPEC;
        return CONTINUE;
    }
    counters->block_reads++;
    counters->block_read_bytes += done;
    call->ret = HVT_R_OK;
    return CONTINUE;
}
