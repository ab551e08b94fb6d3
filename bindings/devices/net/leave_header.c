/* Switches a TAP's offloads off before it is closed. The process that runs the guest may do it too. */
#include <linux/if_tun.h>
#include <sys/ioctl.h>

#include "device.h"
#include "net.h"

void net_leave_header(int fd)
{
    (void)ioctl(fd, TUNSETOFFLOAD, 0UL); /* UL: the sandbox's filter checks all 64 bits */
}

void net_leave_headers(const struct vm *vm)
{
    for (uint32_t i = 0; i < vm->device_end; i++)
        if (is_net(&vm->devices[i]) &&
            (net_of(&vm->devices[i])->offload || net_of(&vm->devices[i])->segments))
            net_leave_header(vm->devices[i].fd);
}
