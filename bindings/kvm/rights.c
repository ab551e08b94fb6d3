/*
 * So that who breaks out of the guest into the handlers finds little to ask for.
 *
 * A host that refuses one of these calls (an older kernel, a filter around us) loses that wall and no other:
 * the guest is behind KVM either way.
 */
#define _GNU_SOURCE
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "rights.h"

#define KICK_SIGNAL 40 /* vm_kick_signal(), which is no constant to the C library */

#include "kvm_filter.inc"

void give_up_capabilities(void)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {{0, 0, 0}};
    (void)syscall(SYS_capset, &head, none);
}

void give_up_calls(void)
{
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return;
    const struct sock_fprog filter = {sizeof filter_code / sizeof *filter_code,
                                      (struct sock_filter *)(uintptr_t)filter_code};
    (void)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter);
}
