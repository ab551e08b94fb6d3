/*
 * The functions of disks that the hypercall handlers of a guest ABI use (guest_abi/hvt): transfers
 * between a disk and memory that the guest names. Disks do not know the guest's structures.
 */
#ifndef TENDER_BLOCK_H
#define TENDER_BLOCK_H

#include "disk.h"
#include "hypercall.h"

/* Bytes between two checks for a stop. A copy of this size takes less than 0.1 ms. */
#define BLOCK_PIECE_BYTES 0x100000u

/*
 * One whole transfer between the disk and [gpa, gpa + len). If it was interrupted, the same call
 * made again continues it.
 */
enum device_answer block_write_from(struct vm *vm, uint64_t handle, uint64_t offset, gpa_t gpa, uint64_t len);
enum device_answer block_read_to(struct vm *vm, uint64_t handle, uint64_t offset, gpa_t gpa, uint64_t len);

/* If it returns DEVICE_DONE, everything that was written to the disk is on its medium. */
enum device_answer block_flush(struct vm *vm, uint64_t handle);

/* Returns the disk of this handle, or NULL. The first call for a guest maps the disks. */
static inline struct vm_device *block_device(struct vm *vm, uint64_t handle)
{
    if (vm->map_devices)
        vm->map_devices(vm);
    if (handle >= vm->device_end || !is_disk(&vm->devices[handle]))
        return NULL;
    return &vm->devices[handle];
}

/* Whether the range lies in the disk. */
static inline bool block_range_is_valid(const struct vm_device *device, uint64_t offset, uint64_t len)
{
    const uint64_t capacity = disk_of(device)->capacity;
    return len <= INT64_MAX && offset < capacity && len <= capacity - offset;
}

/*
 * Whether requests may be served by copies; and how many bytes from the start of a range are then
 * known to be in the host's cache.
 */
static inline bool block_is_mapped(const struct vm_device *device)
{
    return disk_of(device)->map.hva != NULL;
}
static inline uint64_t block_cached(const struct vm_device *device, uint64_t offset, uint64_t len)
{
    return disk_map_cached(&disk_of(device)->map, len, offset);
}

/* Makes the host begin to read this range, and does not wait for it. */
void block_begin_read(const struct vm_device *device, uint64_t offset, uint64_t len);

/* Whether a stop was requested or a signal is pending. */
bool block_must_pause(struct vm *vm);

#endif
