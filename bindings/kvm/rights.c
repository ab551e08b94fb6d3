/*
 * So that who breaks out of the guest into the handlers finds little to ask for.
 *
 * A host that refuses one of these calls (an older kernel, a filter around us) loses that wall and no other:
 * the guest is behind KVM either way.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "rights.h"

#define KICK_SIGNAL 40 /* vm_kick_signal(), which is no constant to the C library */

/* Stand in the filter for descriptors whose numbers are known when it is installed; no descriptor has them.
 */
#define LEFT_SOCKET_FD 0xfffff001u
#define LEFT_LOCK_FD   0xfffff002u

#include "kvm_filter.inc"

_Static_assert(sizeof filter_plain <= sizeof filter_devices, "there is room for either");

void give_up_capabilities(void)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {{0, 0, 0}};
    (void)syscall(SYS_capset, &head, none);
}

/* Without a socket the filter stays as it is: these numbers are nobody's. */
static void fill_in(struct sock_filter *code, size_t count, const struct left_behind *left)
{
    for (size_t i = 0; i < count && left->ours >= 0; i++) {
        if (code[i].k == LEFT_SOCKET_FD)
            code[i].k = (uint32_t)left->ours;
        else if (code[i].k == LEFT_LOCK_FD)
            code[i].k = (uint32_t)left->lock_fd;
    }
}

static void install(const struct sock_filter *rules, size_t count, const struct left_behind *left)
{
    struct sock_filter code[sizeof filter_devices / sizeof *filter_devices];
    memcpy(code, rules, count * sizeof *code);
    fill_in(code, count, left);
    const struct sock_fprog filter = {(unsigned short)count, code};
    (void)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter);
}

void give_up_calls(const struct left_behind *left, bool has_devices)
{
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return;
    if (has_devices)
        install(filter_devices, sizeof filter_devices / sizeof *filter_devices, left);
    else
        install(filter_plain, sizeof filter_plain / sizeof *filter_plain, left);
}
