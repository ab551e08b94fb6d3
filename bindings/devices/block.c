/*
 * A guest's disk: a file or a block device, locked.
 *
 * The lock keeps one image from two writers, and from a writer and readers: exclusive for a disk that may be
 * written, shared for one that is only read. It is an open file description's (F_OFD_SETLK, fcntl(2)), over
 * all bytes:
 * - not the process's (F_SETLK): two VMs of one process must meet it, and the close of another descriptor
 *   of the file must not drop it;
 * - not flock(2): udev takes that one on block devices to look at them, and it means other things there.
 * It is gone with the last copy of the descriptor, so with the process however it ends; a descriptor that was
 * inherited keeps it as long as whoever gave it has it open. It is advice, as all locks on Linux are:
 * solo5-hvt takes none and sees none. Where the host has no such locks (a file system or a system-call filter
 * that refuses them) there is none, and the disk is used all the same.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "device.h"

static int lock_as(int fd, short type)
{
    struct flock lock = {.l_type = type,
                         .l_whence = SEEK_SET}; /* l_len 0: to the end, however far it moves */
    return fcntl(fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

/* 0, or -EAGAIN if someone else's lock is in the way. */
static int lock_disk(int fd, bool read_only)
{
    int error = lock_as(fd, read_only ? F_RDLCK : F_WRLCK);
    if (error == -EBADF && !read_only) /* a descriptor that cannot write: the guest's writes will fail */
        error = lock_as(fd, F_RDLCK);
    return error == -EAGAIN || error == -EACCES ? -EAGAIN : 0;
}

static int cannot_open(struct device_error *error, const char *shown, int os_error)
{
    return device_failed(error, DEVICE_BLOCK_OPEN, os_error, "Could not open block device: %.*s: %s",
                         DEVICE_NAME_SHOWN_MAX, shown, strerror(os_error));
}

/* `fd`, or -1 and it is closed. */
static int accepted(int fd, const char *shown, bool read_only, uint64_t *capacity, struct device_error *error)
{
    struct stat about;
    off_t end = -1;
    if (fstat(fd, &about) < 0)
        (void)cannot_open(error, shown, errno);
    else if (!S_ISREG(about.st_mode) && !S_ISBLK(about.st_mode))
        (void)device_failed(error, DEVICE_BLOCK_KIND, 0,
                            "Could not open block device: %.*s: not a file or a block device",
                            DEVICE_NAME_SHOWN_MAX, shown);
    else if ((end = lseek(fd, 0, SEEK_END)) < 0)
        (void)cannot_open(error, shown, errno);
    else if (lock_disk(fd, read_only) < 0) {
        (void)device_failed(error, DEVICE_BLOCK_LOCKED, EAGAIN,
                            "Could not open block device: %.*s: in use already: %s has locked it",
                            DEVICE_NAME_SHOWN_MAX, shown,
                            read_only ? "a VM or program that may write to it" : "another VM or program");
        end = -1;
    }
    if (end < 0) {
        close(fd);
        return -1;
    }
    *capacity = (uint64_t)end;
    return fd;
}

int block_open(const char *path, bool read_only, uint64_t *capacity, struct device_error *error)
{
    /* O_NONBLOCK: a FIFO by mistake must not hang here; it means nothing for files and disks. */
    int fd = open(path, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return cannot_open(error, path, errno);
    return accepted(fd, path, read_only, capacity, error);
}

int block_duplicate(int fd, const char *shown, bool read_only, uint64_t *capacity, struct device_error *error)
{
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0)
        return cannot_open(error, shown, errno);
    return accepted(copy, shown, read_only, capacity, error);
}

int block_check_capacity(const char *name, uint64_t capacity, uint32_t sector_bytes,
                         struct device_error *error)
{
    if (capacity % sector_bytes)
        return device_failed(error, DEVICE_BLOCK_MISALIGNED, 0,
                             "%s: Backing storage size must be block aligned (%u bytes)", name, sector_bytes);
    if (capacity < sector_bytes)
        return device_failed(error, DEVICE_BLOCK_SMALL, 0,
                             "%s: Backing storage must be at least 1 block (%u bytes) in size", name,
                             sector_bytes);
    return 0;
}
