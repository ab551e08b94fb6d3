/* What a TAP is left with, also by the process that runs the guest. */
#include <linux/if_tun.h>
#include <sys/ioctl.h>

#include "device.h"
#include "net.h"

void net_leave_header(int fd)
{
    (void)ioctl(fd, TUNSETOFFLOAD, 0UL); /* a whole word: the sandbox's filter looks at all of it */
}

void net_leave_headers(const struct vm *vm)
{
    for (uint32_t i = 0; i < vm->device_end; i++)
        if (is_net(&vm->devices[i]) &&
            (net_of(&vm->devices[i])->offload || net_of(&vm->devices[i])->segments))
            net_leave_header(vm->devices[i].fd);
}
