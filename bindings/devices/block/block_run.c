#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>

#include "block_saved.h"
#include "disk_map.h"

static void restore(struct vm_device *device, const uint8_t from[DEVICE_SAVED_BYTES])
{
    struct block_saved saved;
    memcpy(&saved, from, sizeof saved);
    device->capacity = saved.capacity;
    device->read_only = saved.read_only;
    device->mappable_pages = saved.mappable_pages;
}

static void map(struct vm *vm, bool forks)
{
    uint64_t room = DISK_MAPPED_BYTES_MAX;
    for (uint32_t i = 0; i < vm->device_end; i++) {
        struct vm_device *device = &vm->devices[i];
        if (!device->mappable_pages)
            continue;
        disk_map_open(&device->map, device->fd, device->capacity, device->read_only, device->mappable_pages,
                      &room);
        if (forks && device->map.hva)
            (void)madvise(device->map.hva, device->map.bytes, MADV_DONTFORK);
    }
}

extern const struct device_run_ops block_run_ops;
const struct device_run_ops block_run_ops = {.restore = restore, .map = map};
