/* Devices of a VM by handle, and the words for one that cannot be had. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "device.h"
#include "disk.h"
#include "net.h"

int device_failed(struct device_error *error, enum device_problem problem, int os_error, const char *format,
                  ...)
{
    va_list arguments;
    error->problem = problem;
    error->os_error = os_error;
    char text[sizeof error->text];
    va_start(arguments, format);
    (void)vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    /* Bytes from 0x80 on are of a text that Python reads, and makes printable as that. */
    (void)text_escape(error->text, sizeof error->text, text, true);
    return -1;
}

int device_check_inherited(int fd, bool is_net, struct device_error *error)
{
    const int flags = fcntl(fd, F_GETFD);
    if (flags >= 0 && !(flags & FD_CLOEXEC))
        return 0;
    return device_failed(error, DEVICE_NOT_INHERITED, EBADF, "%s: @%d: Bad file descriptor",
                         is_net ? "Could not attach interface" : "Could not open block device", fd);
}

/* NULL: it is none of the guest's, or has a device. */
static struct vm_device *attach(struct vm *vm, uint32_t handle, uint32_t type, int fd)
{
    if (handle >= MFT_MAX_ENTRIES || vm->devices[handle].type)
        return NULL;
    vm->devices[handle] = (struct vm_device){.type = type, .fd = fd};
    vm->count_of[type]++;
    if (handle >= vm->device_end)
        vm->device_end = handle + 1;
    return &vm->devices[handle];
}

/* A header needs both. EBADF: no filter around us refuses them. */
static bool has_vectors(void)
{
    return readv(-1, NULL, 0) < 0 && errno == EBADF && writev(-1, NULL, 0) < 0 && errno == EBADF;
}

enum net_use net_use_for(const struct mft *manifest, uint32_t extensions, uint32_t ring_mode)
{
    uint32_t networks = 0;
    for (uint32_t i = 1; i < manifest->entries; i++)
        networks += manifest->e[i].type == MFT_NET_BASIC;
    if (extensions & TENDER_FEATURE_NET_OFFLOAD)
        return NET_OFFLOAD;
    return ring_mode != RING_NONE && networks == 1 && has_vectors() ? NET_SEGMENTS : NET_PLAIN;
}

void net_leave_segments(struct vm *vm)
{
    for (uint32_t i = 0; i < vm->device_end; i++)
        if (is_net(&vm->devices[i]) && net_of(&vm->devices[i])->segments) {
            net_leave_header(vm->devices[i].fd);
            net_of(&vm->devices[i])->segments = false;
        }
}

int vm_attach_net(struct vm *vm, uint32_t handle, int fd, enum net_use wanted)
{
    struct stat about;
    if (fstat(fd, &about) < 0)
        return -errno;
    struct net_header_use use = {0};
    if (S_ISCHR(about.st_mode))
        use = net_use_header(fd, wanted);
    const struct vm_device *device = attach(vm, handle, MFT_NET_BASIC, fd);
    if (!device)
        return -EINVAL;
    struct net_device *net = net_of(device);
    net->is_socket = S_ISSOCK(about.st_mode);
    net->has_header = use.has_header;
    net->offload = use.offload;
    net->segments = use.segments;
    memcpy(net->link.name, use.name, sizeof use.name);
    return 0;
}

void vm_net_is_named(struct vm *vm, uint32_t handle, bool again)
{
    net_of(&vm->devices[handle])->link.named = true;
    net_of(&vm->devices[handle])->link.again = again;
}

bool vm_has_named_net(const struct vm *vm)
{
    for (uint32_t i = 0; i < vm->device_end; i++)
        if (is_net(&vm->devices[i]) && net_of(&vm->devices[i])->link.named)
            return true;
    return false;
}

bool net_is_wanted_again(const struct vm_device *device)
{
    return is_net(device) && net_of(device)->link.again;
}

int vm_attach(struct vm *vm, uint32_t handle, uint32_t type, int fd)
{
    return attach(vm, handle, type, fd) ? 0 : -EINVAL;
}

int vm_attach_block(struct vm *vm, uint32_t handle, int fd, uint64_t capacity, bool read_only)
{
    const struct vm_device *device = attach(vm, handle, MFT_BLOCK_BASIC, fd);
    if (!device)
        return -EINVAL;
    *disk_of(device) = (struct disk){
        .capacity = capacity, .read_only = read_only, .mappable_pages = disk_mappable_pages(fd, read_only)};
    return 0;
}
