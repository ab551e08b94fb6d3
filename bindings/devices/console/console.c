/*
 * Finds out what kind of file the console's descriptor is. That decides how many bytes one write
 * may have (console_write.c).
 */
#include "console.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define TERMINAL_BYTES 256u
#define FILE_CHUNK     (1u << 20)

int terminal_without_waiting(int fd)
{
    char path[32];
    int number;
    /*
     * TIOCGPTN succeeds on the master of a pseudoterminal pair. To open a master again makes
     * another pair.
     */
    if (!isatty(fd) || ioctl(fd, TIOCGPTN, &number) == 0 || (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY)
        return -1;
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return open(path, O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
}

static void close_own(struct vm *vm)
{
    if (vm->console.own)
        close(vm->console.fd);
    vm->console.own = false;
}

int console_set(struct vm *vm, int fd)
{
    struct stat about;
    close_own(vm);
    vm->console.fd = fd;
    if (fd < 0)
        return 0;
    if (fstat(fd, &about) < 0) {
        vm->console.fd = CONSOLE_DISCARD;
        return -errno;
    }
    vm->console.nowait = S_ISFIFO(about.st_mode);
    vm->console.is_socket = S_ISSOCK(about.st_mode);
    vm->console.chunk = S_ISFIFO(about.st_mode)  ? PIPE_BUF
                        : S_ISCHR(about.st_mode) ? TERMINAL_BYTES
                                                 : FILE_CHUNK;
    const int own = S_ISCHR(about.st_mode) ? terminal_without_waiting(fd) : -1;
    if (own >= 0)
        vm->console.fd = own;
    vm->console.own = own >= 0;
    return 0;
}
