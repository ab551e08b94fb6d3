/*
 * Transfers of a disk, of any length. If the host refuses one (no space, medium error, truncated
 * file), it is counted and the VM goes on.
 *
 * A long transfer is made in pieces. After each piece this file checks for a stop or a signal. If
 * there is one, the run loop exits, and the rest is transferred when the run continues.
 *
 * As much as possible is copied (disk_map.h). pread() and pwrite() transfer the rest.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <unistd.h>

#include "block.h"
#include "entered.h"

/*
 * Transfers the bytes after the `done` bytes that were copied. Returns false if the host does not
 * transfer all of them: that is an error for the guest.
 */
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

void block_begin_read(const struct vm_device *device, uint64_t offset, uint64_t len)
{
    (void)readahead(device->fd, (off_t)offset, len);
}

bool block_must_pause(struct vm *vm)
{
    struct pollfd stop = {vm->stop_fd, POLLIN, 0};
    const struct timespec at_once = {0, 0};
    int ready = ppoll(&stop, 1, &at_once, &vm->poll_mask);
    return ready > 0 || (ready < 0 && errno == EINTR);
}

/* On EXIT, a part is done; vm->resume contains how much. */
static __attribute__((cold, noinline)) enum verdict move_pieces(struct vm *vm, struct vm_device *device,
                                                                bool writing, uint8_t *data, uint64_t len,
                                                                uint64_t offset, bool *failed)
{
    uint64_t done = vm->resume.bytes_done;
    if (done >= len) /* a changed length: the transfer starts again */
        done = 0;
    while (done < len) {
        const uint64_t left = len - done, piece = left < BLOCK_PIECE_BYTES ? left : BLOCK_PIECE_BYTES;
        *failed = !move(vm, device, writing, data + done, piece, offset + done);
        if (*failed)
            break;
        done += piece;
        if (done < len && block_must_pause(vm)) {
            vm->resume.bytes_done = done;
            return exit_interrupted(vm);
        }
    }
    return CONTINUE;
}

/* Inlined once for each direction, so that the compiler removes the tests of `writing`. */
static inline __attribute__((always_inline)) enum device_answer
transfer(struct vm *vm, uint64_t handle, uint64_t offset, gpa_t gpa, uint64_t len, bool writing)
{
    struct vm_counters *counters = &vm->shared->counters;
    struct vm_device *device = block_device(vm, handle);
    if (!device || !block_range_is_valid(device, offset, len))
        return DEVICE_INVALID;
    uint8_t *data = guest_memory_at(&vm->memory, gpa, len, writing ? GUEST_READABLE : GUEST_WRITABLE);
    if (!data)
        return DEVICE_BAD_RANGE;
    bool failed = writing && disk_of(device)->read_only;
    if (!failed && __builtin_expect(len > BLOCK_PIECE_BYTES, 0)) {
        if (move_pieces(vm, device, writing, data, len, offset, &failed) == EXIT)
            return DEVICE_EXIT;
    } else if (!failed) {
        failed = !move(vm, device, writing, data, len, offset);
    }
    if (failed) {
        counters->block_errors++;
        return DEVICE_FAILED;
    }
    *(writing ? &counters->block_writes : &counters->block_reads) += 1;
    *(writing ? &counters->block_write_bytes : &counters->block_read_bytes) += len;
    return DEVICE_DONE;
}

enum device_answer block_write_from(struct vm *vm, uint64_t handle, uint64_t offset, gpa_t gpa, uint64_t len)
{
    return transfer(vm, handle, offset, gpa, len, true);
}

enum device_answer block_read_to(struct vm *vm, uint64_t handle, uint64_t offset, gpa_t gpa, uint64_t len)
{
    return transfer(vm, handle, offset, gpa, len, false);
}

enum device_answer block_flush(struct vm *vm, uint64_t handle)
{
    struct vm_device *device = block_device(vm, handle);
    if (!device)
        return DEVICE_INVALID;
    int failed = disk_of(device)->read_only ? 0 : fdatasync(device->fd);
    while (failed < 0 && errno == EINTR)
        failed = fdatasync(device->fd);
    if (failed < 0) {
        vm->shared->counters.block_errors++;
        return DEVICE_FAILED;
    }
    disk_map_flushed(&disk_of(device)->map);
    vm->shared->counters.block_flushes++;
    return DEVICE_DONE;
}
