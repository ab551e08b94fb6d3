/*
 * What a guest ABI's front asks of disks (guest_abi/hvt): transfers between a disk and memory that the guest
 * names. A disk is the back: it knows no structure of a guest's.
 */
#ifndef TENDER_BLOCK_H
#define TENDER_BLOCK_H

#include "disk.h"
#include "hypercall.h"

/* Bytes between two looks for a stop: a copy of so many takes less than a tenth of a millisecond. */
#define BLOCK_PIECE_BYTES 0x100000u

/* One whole transfer, with [gpa, gpa + len). One that was left goes on when it is made again. */
enum device_answer block_write_from(struct vm *vm, uint64_t handle, uint64_t offset, gpa_t gpa, uint64_t len);
enum device_answer block_read_to(struct vm *vm, uint64_t handle, uint64_t offset, gpa_t gpa, uint64_t len);

/* All that was written to the disk is on its medium, if that is done. */
enum device_answer block_flush(struct vm *vm, uint64_t handle);

/* The disk of this handle, or NULL. Maps the disks, the first time that a guest asks for one. */
static inline struct vm_device *block_device(struct vm *vm, uint64_t handle)
{
    if (vm->map_devices)
        vm->map_devices(vm);
    if (handle >= vm->device_end || !is_disk(&vm->devices[handle]))
        return NULL;
    return &vm->devices[handle];
}

/* The disk has these bytes. */
static inline bool block_range_is_valid(const struct vm_device *device, uint64_t offset, uint64_t len)
{
    const uint64_t capacity = disk_of(device)->capacity;
    return len <= INT64_MAX && offset < capacity && len <= capacity - offset;
}

/* Whether requests may be copies, and then how many bytes from the beginning of this range are in the host's
 * cache, as far as is known. */
static inline bool block_is_mapped(const struct vm_device *device)
{
    return disk_of(device)->map.hva != NULL;
}
static inline uint64_t block_cached(const struct vm_device *device, uint64_t offset, uint64_t len)
{
    return disk_map_cached(&disk_of(device)->map, len, offset);
}

/* The host begins to read this range, and nobody waits for it. */
void block_begin_read(const struct vm_device *device, uint64_t offset, uint64_t len);

/* A stop was asked for, or a signal waits. */
bool block_is_wanted_elsewhere(struct vm *vm);

#endif
