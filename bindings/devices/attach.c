/* Opens and attaches devices of any kind, and formats the error for a device that cannot be opened. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "device.h"

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
    /* Bytes from 0x80 on stay: they may belong to UTF-8 text. Python decodes it and makes it printable. */
    (void)text_escape(error->text, sizeof error->text, text, true);
    return -1;
}

int device_check_inherited(uint32_t type, int fd, struct device_error *error)
{
    const int flags = fcntl(fd, F_GETFD);
    if (flags >= 0 && !(flags & FD_CLOEXEC))
        return 0;
    return device_failed(error, DEVICE_NOT_INHERITED, EBADF, "%s: @%d: Bad file descriptor",
                         device_kinds[type]->cannot, fd);
}

int device_open(struct device_settings *settings, const struct device_guest *guest, struct mft_entry *entry,
                struct device_error *error)
{
    if (entry->type >= DEVICE_TYPES || !device_kinds[entry->type])
        return device_failed(error, DEVICE_OTHER, ENODEV, "%s: no such kind of device", entry->name);
    return device_kinds[entry->type]->open(settings, guest, entry, error);
}

int device_attach(struct vm *vm, uint32_t handle, struct device_settings *settings,
                  const struct device_guest *guest, struct mft_entry *entry, struct device_error *error)
{
    const int fd = device_open(settings, guest, entry, error);
    if (fd < 0)
        return -1;
    struct vm_device *const device = &vm->devices[handle];
    *device = (struct vm_device){.type = entry->type, .fd = fd};
    const struct device_ops *const kind = device_ops_of(device);
    const int answer = kind->attach ? kind->attach(settings, entry, device) : 0;
    if (answer < 0) {
        device->type = 0;
        close(fd);
        return device_failed(error, DEVICE_OTHER, -answer, "%s: %s", entry->name, strerror(-answer));
    }
    entry->attached = 1;
    vm->count_of[device->type]++;
    if (handle >= vm->device_end)
        vm->device_end = handle + 1;
    return fd;
}
