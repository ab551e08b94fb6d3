/* See filter.h. Freestanding: no libc, only its headers, for the values of flags. */
#define _GNU_SOURCE
#include "filter.h"

#include <asm/prctl.h>
#include <asm/unistd.h>
#include <linux/audit.h>
#include <linux/if_tun.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#include "../fds.h"
#include "filter.inc"

_Static_assert(sizeof filter_rules / sizeof *filter_rules == FILTER_LENGTH, "both files belong together");
_Static_assert(FILTER_LENGTH <= BPF_MAXINSNS, "the kernel accepts it");
_Static_assert(FILTER_SYSCALL_HIGH < FILTER_LENGTH && FILTER_SYSCALL_LOW < FILTER_LENGTH,
               "the holes lie in the filter");

#define GUEST_END ((uint64_t)1 << 32)
#define NOWHERE   UINT64_MAX

void filter_build(struct sock_filter copy[FILTER_LENGTH], uint64_t syscall_return_ip)
{
    for (uint32_t i = 0; i < FILTER_LENGTH; i++)
        copy[i] = filter_rules[i];
    if (syscall_return_ip <= GUEST_END)
        syscall_return_ip = NOWHERE;
    copy[FILTER_SYSCALL_HIGH].k = (uint32_t)(syscall_return_ip >> 32);
    copy[FILTER_SYSCALL_LOW].k = (uint32_t)syscall_return_ip;
}
