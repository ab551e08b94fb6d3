/* The interface of disks to code that knows no kind of device: device_ops.h. */
#include "device.h"
#include "disk.h"

static void release(struct vm *vm)
{
    for (uint32_t i = 0; i < vm->device_end; i++)
        if (is_disk(&vm->devices[i]))
            disk_map_close(&disk_of(&vm->devices[i])->map);
}

const struct device_ops block_ops = {
    .cannot = "Could not open block device",
    .open = block_open,
    .attach = block_attach,
    .release = release,
};
