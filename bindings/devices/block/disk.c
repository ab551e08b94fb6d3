/*
 * A guest's disk: a file or a block device, locked.
 *
 * The lock prevents an image from having two writers, or a writer and readers. It is exclusive for
 * a disk that may be written, and shared for one that is only read. It belongs to the open file
 * description (F_OFD_SETLK, fcntl(2)) and covers all bytes. Two other kinds of lock do not fit:
 * - A lock of the process (F_SETLK) would not exclude two VMs of one process from each other, and
 *   the close of another descriptor of the same file would release it.
 * - flock(2) has another meaning for block devices: udev takes it on them in order to inspect them.
 *
 * The lock ends with the last copy of the descriptor, so also with the process, however that ends.
 * The file of an inherited descriptor is opened again. The reason: a lock of a shared description
 * would not exclude the others that share it, and a reader's lock would replace a writer's. Where
 * the file cannot be opened again (no /proc, no permission), a duplicate is used, unless its
 * description has a lock already.
 *
 * The lock is advisory, as all locks on Linux are: solo5-hvt takes none and does not check for one.
 * Where the host has no such locks (a file system or a seccomp filter refuses them), the disk is
 * used without a lock.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "device.h"
#include "disk.h"

#define FORMAT_BYTES 68

static int lock_as(int fd, short type)
{
    struct flock lock = {.l_type = type,
                         .l_whence = SEEK_SET}; /* l_len 0: to the end, even if the file grows */
    return fcntl(fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

/*
 * Returns 0, -EAGAIN if another lock conflicts, or -EINTR if a signal came while the file system
 * worked on it.
 */
static int lock_disk(int fd, bool read_only)
{
    int error = lock_as(fd, read_only ? F_RDLCK : F_WRLCK);
    if (error == -EINTR)
        return error;
    return error == -EAGAIN || error == -EACCES ? -EAGAIN : 0;
}

static int cannot_open(struct device_error *error, const char *shown, int os_error)
{
    return device_failed(error, DEVICE_BLOCK_OPEN, os_error, "Could not open block device: %.*s: %s",
                         DEVICE_NAME_SHOWN_MAX, shown, strerror(os_error));
}

static int locked_already(const char *shown, bool read_only, struct device_error *error)
{
    return device_failed(error, DEVICE_LOCKED, EAGAIN,
                         "Could not open block device: %.*s: in use already: %s has locked it",
                         DEVICE_NAME_SHOWN_MAX, shown,
                         read_only ? "a VM or program that may write to it" : "another VM or program");
}

/*
 * Returns the name of the image's format, or NULL if the image is raw: its bytes are the disk's
 * bytes. errno is EINTR if a signal came before that was known.
 */
static const char *format_of(int fd)
{
    static const struct {
        const char *name;
        unsigned at, len;
        const char *magic;
    } formats[] = {
        {"qcow2", 0, 4, "QFI\xfb"},
        {"VMDK", 0, 4, "KDMV"},
        {"VMDK", 0, 21, "# Disk DescriptorFile"},
        {"VDI", 64, 4, "\x7f\x10\xda\xbe"},
        {"VHDX", 0, 8, "vhdxfile"},
        {"VHD", 0, 8, "conectix"},
    };
    char start[FORMAT_BYTES];
    errno = 0;
    const ssize_t got = pread(fd, start, sizeof start, 0);
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (got >= (ssize_t)(formats[i].at + formats[i].len) &&
            memcmp(start + formats[i].at, formats[i].magic, formats[i].len) == 0)
            return formats[i].name;
    return NULL;
}

static bool is_same(const struct stat *one, const struct stat *other)
{
    if (S_ISBLK(one->st_mode) && S_ISBLK(other->st_mode))
        return one->st_rdev == other->st_rdev;
    return one->st_dev == other->st_dev && one->st_ino == other->st_ino;
}

/*
 * Returns "stdout" or "stderr" if that output of this process goes to the same disk, otherwise
 * NULL. Such output would overwrite the disk, even one that the guest may not write.
 */
static const char *output_to(const struct stat *disk)
{
    static const char *const names[] = {[STDOUT_FILENO] = "stdout", [STDERR_FILENO] = "stderr"};
    struct stat about;
    for (int fd = STDOUT_FILENO; fd <= STDERR_FILENO; fd++) {
        const int flags = fcntl(fd, F_GETFL);
        if (flags >= 0 && (flags & O_ACCMODE) != O_RDONLY && fstat(fd, &about) == 0 && is_same(&about, disk))
            return names[fd];
    }
    return NULL;
}

/* Returns `fd` if it can be this disk. Otherwise closes `fd` and returns -1. */
static int accepted(int fd, const char *shown, const struct device_settings *use, uint64_t *capacity,
                    struct device_error *error)
{
    const char *format = NULL, *output = NULL;
    struct stat about;
    off_t end = -1;
    int locked = 0;
    if (fstat(fd, &about) < 0)
        (void)cannot_open(error, shown, errno);
    else if (!S_ISREG(about.st_mode) && !S_ISBLK(about.st_mode))
        (void)device_failed(error, DEVICE_BLOCK_KIND, 0,
                            "Could not open block device: %.*s: not a file or a block device",
                            DEVICE_NAME_SHOWN_MAX, shown);
    else if ((output = output_to(&about)))
        (void)device_failed(error, DEVICE_BLOCK_OUTPUT, 0,
                            "Could not open block device: %.*s: %s is open for writing to the same file",
                            DEVICE_NAME_SHOWN_MAX, shown, output);
    else if ((end = lseek(fd, 0, SEEK_END)) < 0)
        (void)cannot_open(error, shown, errno);
    else if ((locked = lock_disk(fd, use->read_only)) < 0) {
        if (locked == -EINTR)
            (void)cannot_open(error, shown, EINTR);
        else
            (void)locked_already(shown, use->read_only, error);
        end = -1;
    } else if (!use->raw && !(format = format_of(fd)) && errno == EINTR) {
        (void)cannot_open(error, shown, EINTR);
        end = -1;
    } else if (format) {
        (void)device_failed(
            error, DEVICE_BLOCK_FORMAT, 0,
            "Could not open block device: %.*s: it is a %s image, and a guest would see the bytes of "
            "the file, not of the disk in it",
            DEVICE_NAME_SHOWN_MAX, shown, format);
        end = -1;
    }
    if (end < 0) {
        close(fd);
        return -1;
    }
    *capacity = (uint64_t)end;
    return fd;
}

static int open_path(const struct device_settings *use, uint64_t *capacity, struct device_error *error)
{
    char part[PATH_MAX + 1]; /* a path that is too long for the kernel stays too long */
    const char *path = use->source;
    if (use->source_len) {
        (void)snprintf(part, sizeof part, "%.*s", (int)use->source_len, path);
        path = part;
    }
    /* O_NONBLOCK: a FIFO that is given by mistake must not block. It has no effect for files and disks. */
    int fd = open(path, (use->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return cannot_open(error, path, errno);
    return accepted(fd, path, use, capacity, error);
}

/* Returns 0 if a guest can use a descriptor with these flags, otherwise -1. */
static int flags_fit(int fd, int flags, const char *shown, bool read_only, struct device_error *error)
{
    const int mode = flags & O_ACCMODE, seals = fcntl(fd, F_GET_SEALS);
    enum device_problem problem;
    const char *why;
    if (flags & O_PATH)
        problem = DEVICE_PATH_ONLY, why = "the descriptor names a file that is not open (O_PATH)";
    else if (mode == O_WRONLY)
        problem = DEVICE_BLOCK_WRITE_ONLY, why = "the descriptor is open for writing only (O_WRONLY)";
    else if (flags & O_APPEND)
        problem = DEVICE_BLOCK_APPENDS,
        why = "the descriptor is open for appending (O_APPEND): each write goes to the end of the file";
    else if (flags & O_DIRECT)
        problem = DEVICE_BLOCK_DIRECT,
        why = "the descriptor is open for direct transfers (O_DIRECT), which a guest's buffers do not fit";
    else if (mode == O_RDONLY && !read_only)
        problem = DEVICE_BLOCK_READ_ONLY, why = "the descriptor is open for reading only (O_RDONLY)";
    else if (!read_only && seals > 0 && seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))
        problem = DEVICE_BLOCK_SEALED, why = "the file is sealed against writes (F_SEAL_WRITE)";
    else
        return 0;
    return device_failed(error, problem, EINVAL, "Could not open block device: %.*s: %s",
                         DEVICE_NAME_SHOWN_MAX, shown, why);
}

/* Opens the file of `fd` again. Returns -1 where that is not possible. */
static int open_again(int fd, int flags, const struct stat *about)
{
    char path[32];
    struct stat opened;
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int again = open(path, flags | O_CLOEXEC | O_NONBLOCK);
    if (again >= 0 && fstat(again, &opened) == 0 && is_same(&opened, about))
        return again;
    if (again >= 0)
        close(again);
    return -1;
}

/* Whether the description of `fd` has a lock itself. F_OFD_GETLK reports only the locks of others. */
static bool has_lock(int fd)
{
    char path[32], text[2048];
    (void)snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    int info = open(path, O_RDONLY | O_CLOEXEC);
    if (info < 0)
        return false;
    ssize_t got = read(info, text, sizeof text - 1);
    close(info);
    text[got > 0 ? got : 0] = '\0';
    return strstr(text, "OFDLCK") != NULL;
}

/*
 * Opens the file of an inherited descriptor. A descriptor whose flags would make the guest's reads
 * or writes fail is refused.
 */
static int open_inherited(const char *shown, const struct device_settings *use, uint64_t *capacity,
                          struct device_error *error)
{
    const bool read_only = use->read_only;
    const int fd = use->fd, flags = fcntl(fd, F_GETFL);
    struct stat about;
    if (flags < 0 || fstat(fd, &about) < 0)
        return cannot_open(error, shown, errno);
    int copy = -1;
    if (S_ISREG(about.st_mode) || S_ISBLK(about.st_mode)) { /* accepted() refuses any other kind */
        if (flags_fit(fd, flags, shown, read_only, error) < 0)
            return -1;
        copy = open_again(fd, (flags & O_SYNC) | (read_only ? O_RDONLY : O_RDWR), &about);
        if (copy < 0 && has_lock(fd))
            return locked_already(shown, read_only, error);
    }
    if (copy < 0)
        copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0)
        return cannot_open(error, shown, errno);
    return accepted(copy, shown, use, capacity, error);
}

/* Duplicates a descriptor that was opened and checked before. The lock holds for the duplicate too. */
static int duplicate(const char *shown, int opened, uint64_t *capacity, struct device_error *error)
{
    const int fd = fcntl(opened, F_DUPFD_CLOEXEC, 0);
    const off_t end = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
    if (end < 0) {
        (void)cannot_open(error, shown, errno);
        if (fd >= 0)
            close(fd);
        return -1;
    }
    *capacity = (uint64_t)end;
    return fd;
}

/* Checks that the capacity is a whole number of sectors, and at least one. */
static int check_capacity(const struct mft_entry *entry, uint32_t sector_bytes, struct device_error *error)
{
    if (sector_bytes && entry->u.block.capacity % sector_bytes)
        return device_failed(error, DEVICE_BLOCK_MISALIGNED, 0,
                             "%s: Backing storage size must be block aligned (%u bytes)", entry->name,
                             sector_bytes);
    if (entry->u.block.capacity < sector_bytes)
        return device_failed(error, DEVICE_BLOCK_SMALL, 0,
                             "%s: Backing storage must be at least 1 block (%u bytes) in size", entry->name,
                             sector_bytes);
    return 0;
}

int block_open(struct device_settings *settings, const struct device_guest *guest, struct mft_entry *entry,
               struct device_error *error)
{
    (void)guest;
    char number[16];
    const char *const shown = settings->shown ? settings->shown : number;
    uint64_t *const capacity = &entry->u.block.capacity;
    (void)snprintf(number, sizeof number, "@%d", settings->fd);
    const int fd = settings->source   ? open_path(settings, capacity, error)
                   : settings->opened ? duplicate(shown, settings->fd, capacity, error)
                                      : open_inherited(shown, settings, capacity, error);
    entry->u.block.block_size = (uint16_t)settings->sector_size;
    if (fd >= 0 && check_capacity(entry, settings->sector_size, error) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

int block_attach(const struct device_settings *settings, const struct mft_entry *entry,
                 struct vm_device *device)
{
    *disk_of(device) = (struct disk){
        .capacity = entry->u.block.capacity,
        .read_only = settings->read_only,
        .mappable_pages = disk_mappable_pages(device->fd, settings->read_only),
    };
    return 0;
}
