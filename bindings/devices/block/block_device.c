/* Disks, for whoever knows no kind of device: device_ops.h. */
#include <string.h>

#include "block_saved.h"
#include "disk_map.h"

static struct device_places places(const struct vm_device *device)
{
    return (struct device_places){device->capacity, device->read_only};
}

static void save(const struct vm_device *device, uint8_t to[DEVICE_SAVED_BYTES])
{
    const struct block_saved saved = {device->capacity, device->read_only, device->mappable_pages};
    memcpy(to, &saved, sizeof saved);
}

static void release(struct vm *vm)
{
    for (uint32_t i = 0; i < vm->device_end; i++)
        disk_map_close(&vm->devices[i].map);
}

extern const struct device_ops block_ops;
const struct device_ops block_ops = {
    .places = places,
    .save = save,
    .release = release,
};
