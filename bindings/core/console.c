/* What kind of thing the console's descriptor is, and with it how much one write may carry (hc_console.c). */
#include <errno.h>
#include <limits.h>
#include <sys/stat.h>

#include "console.h"

#define TERMINAL_ROOM 256u
#define FILE_CHUNK    (1u << 20)

int console_set(struct vm *vm, int fd)
{
    vm->console_fd = fd;
    if (fd < 0)
        return 0;
    struct stat about;
    if (fstat(fd, &about) < 0) {
        vm->console_fd = CONSOLE_DISCARD;
        return -errno;
    }
    vm->console_nowait = S_ISFIFO(about.st_mode);
    vm->console_socket = S_ISSOCK(about.st_mode);
    vm->console_chunk = S_ISFIFO(about.st_mode)  ? PIPE_BUF
                        : S_ISCHR(about.st_mode) ? TERMINAL_ROOM
                                                 : FILE_CHUNK;
    return 0;
}
