/* The state of a disk. Only this folder uses it; struct vm (core/vm.h) has the space for it. */
#ifndef TENDER_DISK_H
#define TENDER_DISK_H

#include "device_ops.h"
#include "disk_map.h"

struct disk {
    uint64_t capacity; /* bytes */
    bool read_only;
    uint32_t mappable_pages; /* the number of pages that copies may serve at a time (disk_map.h) */
    struct disk_map map;
};
_Static_assert(sizeof(struct disk) <= DEVICE_OWN_BYTES, "it fits");

/* The state of a device that is a disk. */
static inline struct disk *disk_of(const struct vm_device *device)
{
    return (void *)(uintptr_t)device->own;
}

static inline bool is_disk(const struct vm_device *device)
{
    return device->type == MFT_BLOCK_BASIC;
}

#endif
