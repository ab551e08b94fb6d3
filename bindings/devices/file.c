/*
 * Opens the files that a command or a caller names in addition to the guest's devices: the image,
 * the console, and the report of a run.
 *
 * The rule: before a file or descriptor is used, fstat() of what was opened decides whether it is
 * suitable. And nothing waits: a FIFO without its other side, a terminal or a tape could make
 * open() wait without limit. O_NOCTTY: a terminal that is only written to must not become the
 * terminal of this session.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "device.h"

static const char *kind_name(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
        return "a file";
    case S_IFDIR:
        return "a directory";
    case S_IFIFO:
        return "a pipe or FIFO";
    case S_IFSOCK:
        return "a socket";
    case S_IFCHR:
        return "a character device";
    case S_IFBLK:
        return "a block device";
    default:
        return "an anonymous object of the kernel, such as an eventfd";
    }
}

/*
 * An image is read at any offset, so it must have offsets. Console and report are a sequence of
 * bytes, so they need a file that takes such a sequence, and whose content they do not overwrite.
 */
static bool is_suitable(mode_t mode, enum file_use use)
{
    if (use == FILE_IMAGE)
        return S_ISREG(mode) || S_ISBLK(mode);
    return S_ISREG(mode) || S_ISFIFO(mode) || S_ISSOCK(mode) || S_ISCHR(mode);
}

static int cannot(struct device_error *error, enum file_use use, int os_error)
{
    return device_failed(error, DEVICE_FILE_OPEN, os_error, "%s%s",
                         use == FILE_IMAGE ? "Could not open: " : "", strerror(os_error));
}

static int wrong_kind(struct device_error *error, mode_t mode, enum file_use use)
{
    if (S_ISDIR(mode))
        return cannot(error, use, EISDIR);
    return device_failed(error, S_ISFIFO(mode) ? DEVICE_FILE_PIPE : DEVICE_FILE_KIND, 0, "%s: it is %s",
                         use == FILE_IMAGE ? "Not a file" : "Not a file, pipe, socket or terminal",
                         kind_name(mode));
}

/*
 * Reports why open() failed. For a FIFO without a reader and for a socket the kernel returns the
 * same ENXIO.
 */
static int not_opened(const char *path, enum file_use use, int os_error, struct device_error *error)
{
    struct stat about;
    if (os_error != ENXIO || stat(path, &about) < 0)
        return cannot(error, use, os_error);
    if (S_ISFIFO(about.st_mode))
        return device_failed(error, DEVICE_FILE_NO_READER, os_error, "It is a FIFO that nobody reads");
    if (S_ISSOCK(about.st_mode))
        return device_failed(error, DEVICE_FILE_SOCKET, os_error,
                             "It is a socket, which cannot be opened by its name");
    return cannot(error, use, os_error);
}

int file_open(const char *path, enum file_use use, struct device_error *error)
{
    static const int flags[] = {
        [FILE_IMAGE] = O_RDONLY,
        [FILE_CONSOLE] = O_WRONLY | O_CREAT | O_APPEND,
        [FILE_REPORT] = O_WRONLY | O_CREAT,
    };
    struct stat about;
    const int fd =
        open(path, flags[use] | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, use == FILE_CONSOLE ? 0644 : 0666);
    if (fd < 0)
        return not_opened(path, use, errno, error);
    if (fstat(fd, &about) < 0)
        (void)cannot(error, use, errno);
    else if (!is_suitable(about.st_mode, use))
        (void)wrong_kind(error, about.st_mode, use);
    else
        return fd;
    close(fd);
    return -1;
}

int file_check_output(int fd, struct device_error *error)
{
    struct stat about;
    struct sockaddr_storage peer;
    socklen_t peer_len = sizeof peer;
    const int flags = fcntl(fd, F_GETFL), seals = fcntl(fd, F_GET_SEALS);
    if (flags < 0 || fcntl(fd, F_GETFD) & FD_CLOEXEC || fstat(fd, &about) < 0)
        return device_failed(error, DEVICE_NOT_INHERITED, EBADF, "Bad file descriptor");
    if (flags & O_PATH)
        return device_failed(error, DEVICE_PATH_ONLY, EINVAL, "It names a file that is not open (O_PATH)");
    if (!is_suitable(about.st_mode, FILE_REPORT))
        return wrong_kind(error, about.st_mode, FILE_REPORT);
    if ((flags & O_ACCMODE) == O_RDONLY)
        return device_failed(error, DEVICE_FILE_READ_ONLY, EINVAL, "It is open for reading only (O_RDONLY)");
    if (seals > 0 && seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))
        return device_failed(error, DEVICE_FILE_READ_ONLY, EINVAL,
                             "The file is sealed against writes (F_SEAL_WRITE)");
    if (S_ISSOCK(about.st_mode) && getpeername(fd, (struct sockaddr *)&peer, &peer_len) < 0 &&
        errno == ENOTCONN)
        return device_failed(error, DEVICE_NET_UNCONNECTED, ENOTCONN, "The socket is not connected");
    return 0;
}
