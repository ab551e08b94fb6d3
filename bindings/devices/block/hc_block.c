/*
 * block_write and block_read: one whole transfer a call, of any length. A host error (no space, medium, file
 * cut short) is the guest's to handle: it gets EUNSPEC and it is counted; the VM goes on.
 *
 * A long transfer is made piece by piece, and behind each a stop or a signal is looked for; the rest is done
 * when the run goes on.
 *
 * What can be copied is (disk_map.h); the rest is pread() and pwrite().
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <unistd.h>

#include "block.h"
#include "entered.h"

struct vm_device *block_device(struct vm *vm, uint64_t handle)
{
    if (vm->map_devices)
        vm->map_devices(vm);
    if (handle >= vm->device_end || !is_disk(&vm->devices[handle]))
        return NULL;
    return &vm->devices[handle];
}

bool block_range_is_valid(const struct vm_device *device, uint64_t offset, uint64_t len)
{
    const uint64_t capacity = disk_of(device)->capacity;
    return len <= INT64_MAX && offset < capacity && len <= capacity - offset;
}

/* Behind what was copied, all of it, or an errno's worth of nothing: what the host leaves undone is an error
 * for the guest. */
static __attribute__((cold, noinline)) bool transfer_rest(struct vm_device *device, bool writing,
                                                          uint8_t *data, uint64_t len, uint64_t offset,
                                                          uint64_t done)
{
    const uint64_t copied = done;
    while (done < len) {
        off_t at = (off_t)(offset + done);
        ssize_t n = writing ? pwrite(device->fd, data + done, len - done, at)
                            : pread(device->fd, data + done, len - done, at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        done += (uint64_t)n;
    }
    disk_map_note(&disk_of(device)->map, writing, len - copied, offset + copied);
    return true;
}

static inline bool move(struct vm *vm, struct vm_device *device, bool writing, uint8_t *data, uint64_t len,
                        uint64_t offset)
{
    const uint64_t done = disk_map_copy(&disk_of(device)->map, writing, data, len, offset);
    const bool moved = done == len || transfer_rest(device, writing, data, len, offset, done);
    if (!writing)
        entered(&vm->memory, data, len, ENTERED_BLOCK);
    return moved;
}

bool block_is_wanted_elsewhere(struct vm *vm)
{
    struct pollfd stop = {vm->stop_fd, POLLIN, 0};
    const struct timespec at_once = {0, 0};
    int ready = ppoll(&stop, 1, &at_once, &vm->poll_mask);
    return ready > 0 || (ready < 0 && errno == EINTR);
}

/* LEAVE: some of it is done, as vm->resume has it. */
static __attribute__((cold, noinline)) enum verdict move_pieces(struct vm *vm, struct vm_device *device,
                                                                bool writing, uint8_t *data, uint64_t len,
                                                                uint64_t offset, bool *failed)
{
    uint64_t done = vm->resume.bytes_done;
    if (done >= len) /* the guest's memory says another length than it did: it begins anew */
        done = 0;
    while (done < len) {
        const uint64_t left = len - done, piece = left < BLOCK_PIECE_BYTES ? left : BLOCK_PIECE_BYTES;
        *failed = !move(vm, device, writing, data + done, piece, offset + done);
        if (*failed)
            break;
        done += piece;
        if (done < len && block_is_wanted_elsewhere(vm)) {
            vm->resume.bytes_done = done;
            return leave_interrupted(vm);
        }
    }
    return CONTINUE;
}

/* Both directions have one structure (tender_abi_check.h pins each field of both to the same place), and a
 * body each: what depends on the direction is then decided. */
static inline __attribute__((always_inline)) enum verdict transfer(struct vm *vm,
                                                                   struct hvt_block_write *call, bool writing)
{
    struct vm_counters *counters = &vm->shared->counters;
    struct vm_device *device = block_device(vm, call->handle);
    call->ret = HVT_R_EINVAL;
    if (!device || !block_range_is_valid(device, call->offset, call->len))
        return CONTINUE;
    const uint64_t len = call->len, offset = call->offset;
    uint8_t *data = guest_memory_at(&vm->memory, call->data, len, writing ? GUEST_READABLE : GUEST_WRITABLE);
    if (!data)
        return leave_bad_access(vm, call->data, len);
    bool failed = writing && disk_of(device)->read_only;
    if (!failed && __builtin_expect(len > BLOCK_PIECE_BYTES, 0)) {
        if (move_pieces(vm, device, writing, data, len, offset, &failed) == LEAVE)
            return LEAVE;
    } else if (!failed) {
        failed = !move(vm, device, writing, data, len, offset);
    }
    if (failed) {
        counters->block_errors++;
        call->ret = HVT_R_EUNSPEC;
        return CONTINUE;
    }
    *(writing ? &counters->block_writes : &counters->block_reads) += 1;
    *(writing ? &counters->block_write_bytes : &counters->block_read_bytes) += len;
    call->ret = HVT_R_OK;
    return CONTINUE;
}

enum verdict block_transfer(struct vm *vm, struct hvt_block_write *call, bool writing)
{
    return writing ? transfer(vm, call, true) : transfer(vm, call, false);
}

int32_t block_flush(struct vm *vm, uint64_t handle)
{
    struct vm_device *device = block_device(vm, handle);
    if (!device)
        return HVT_R_EINVAL;
    int failed = disk_of(device)->read_only ? 0 : fdatasync(device->fd);
    while (failed < 0 && errno == EINTR)
        failed = fdatasync(device->fd);
    if (failed < 0) {
        vm->shared->counters.block_errors++;
        return HVT_R_EUNSPEC;
    }
    disk_map_flushed(&disk_of(device)->map);
    vm->shared->counters.block_flushes++;
    return HVT_R_OK;
}

enum verdict hc_block_write(struct vm *vm, union hypercall_args *args)
{
    return transfer(vm, &args->block_write, true);
}

enum verdict hc_block_read(struct vm *vm, union hypercall_args *args)
{
    _Static_assert(sizeof args->block_read == sizeof args->block_write, "one structure for both");
    return transfer(vm, &args->block_write, false);
}
