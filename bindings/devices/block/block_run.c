/* The part of the disks' interface for the process that runs the guest; device_ops.h has the contract. */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "disk.h"

static struct device_places places(const struct vm_device *device)
{
    return (struct device_places){disk_of(device)->capacity, disk_of(device)->read_only};
}

static void map(struct vm *vm, bool forks)
{
    uint64_t budget = DISK_MAPPED_BYTES_MAX;
    for (uint32_t i = 0; i < vm->device_end; i++) {
        const struct vm_device *device = &vm->devices[i];
        struct disk *disk = disk_of(device);
        if (!is_disk(device) || !disk->mappable_pages)
            continue;
        disk_map_open(&disk->map, device->fd, disk->capacity, disk->read_only, disk->mappable_pages, &budget);
        if (forks && disk->map.hva)
            (void)madvise(disk->map.hva, disk->map.bytes, MADV_DONTFORK);
    }
}

const struct device_run_ops block_run_ops = {.places = places, .map = map};
