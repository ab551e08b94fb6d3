#define _GNU_SOURCE
#include "reset_kvm.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#define MSRS_MAX 1024 /* KVM 6.12 lists some 100 to 300, by processor */

/* struct kvm_msrs and struct kvm_msr_list end in an array of no size. */
struct msrs {
    struct kvm_msrs head;
    struct kvm_msr_entry entries[MSRS_MAX];
};

struct msr_list {
    struct kvm_msr_list head;
    uint32_t indices[MSRS_MAX];
};

struct kvm_fresh {
    struct kvm_xsave xsave;
    struct kvm_xcrs xcrs;
    struct kvm_debugregs debugregs;
    struct kvm_vcpu_events events;
    struct msrs msrs;
};

/* Those that can be read and written back as they are: what KVM lists is what a migration carries, but a few
 * it lists are not there on this processor, and it stops at the first that it refuses. */
static int take_msrs(struct kvm_fresh *fresh, int kvm_fd, int vcpu_fd)
{
    struct msr_list *list = calloc(1, sizeof *list);
    if (!list)
        return -1;
    list->head.nmsrs = MSRS_MAX;
    int answer = ioctl(kvm_fd, KVM_GET_MSR_INDEX_LIST, &list->head);
    uint32_t kept = 0;
    for (uint32_t i = 0; answer == 0 && i < list->head.nmsrs; i++) {
        struct {
            struct kvm_msrs head;
            struct kvm_msr_entry entry;
        } one = {.head.nmsrs = 1, .entry.index = list->indices[i]};
        if (ioctl(vcpu_fd, KVM_GET_MSRS, &one) == 1 && ioctl(vcpu_fd, KVM_SET_MSRS, &one) == 1)
            fresh->msrs.entries[kept++] = one.entry;
    }
    fresh->msrs.head.nmsrs = kept;
    int error = errno;
    free(list);
    errno = error;
    return answer;
}

/* Of a component that the header leaves out KVM keeps what is not in its own part of the area: MXCSR. So the
 * two oldest are said to be there, with the values that stand in the area anyway (Intel SDM volume 1, 13.4).
 */
static void name_legacy_state(struct kvm_xsave *xsave)
{
    enum { XSTATE_BV_WORD = 512 / sizeof xsave->region[0], X87_AND_SSE = 3 };
    xsave->region[XSTATE_BV_WORD] |= X87_AND_SSE;
}

struct kvm_fresh *kvm_fresh_take(int kvm_fd, int vcpu_fd)
{
    struct kvm_fresh *fresh = calloc(1, sizeof *fresh);
    if (!fresh)
        return NULL;
    if (ioctl(vcpu_fd, KVM_GET_XSAVE, &fresh->xsave) < 0 || ioctl(vcpu_fd, KVM_GET_XCRS, &fresh->xcrs) < 0 ||
        ioctl(vcpu_fd, KVM_GET_DEBUGREGS, &fresh->debugregs) < 0 ||
        ioctl(vcpu_fd, KVM_GET_VCPU_EVENTS, &fresh->events) < 0 || take_msrs(fresh, kvm_fd, vcpu_fd) < 0) {
        int error = errno;
        free(fresh);
        errno = error;
        return NULL;
    }
    name_legacy_state(&fresh->xsave);
    return fresh;
}

/* The last exit was half an instruction: KVM finishes it at the next KVM_RUN, which must not be the next
 * guest's. With immediate_exit that is all it does (KVM API, 4.13). */
static int finish_last_exit(int vcpu_fd, struct kvm_run *run)
{
    run->immediate_exit = 1;
    int answer = ioctl(vcpu_fd, KVM_RUN, 0);
    int error = errno;
    run->immediate_exit = 0;
    return answer < 0 && error == EINTR ? 0 : answer < 0 ? -error : -EIO;
}

int kvm_reset(const struct kvm_fresh *fresh, int vcpu_fd, struct kvm_run *run, const struct kvm_sregs *sregs,
              const struct kvm_regs *regs)
{
    int error = finish_last_exit(vcpu_fd, run);
    if (error)
        return error;
    /* The system registers first: what else may be said depends on the mode they make. */
    if (ioctl(vcpu_fd, KVM_SET_SREGS, sregs) < 0 || ioctl(vcpu_fd, KVM_SET_XCRS, &fresh->xcrs) < 0 ||
        ioctl(vcpu_fd, KVM_SET_XSAVE, &fresh->xsave) < 0 ||
        ioctl(vcpu_fd, KVM_SET_DEBUGREGS, &fresh->debugregs) < 0 ||
        ioctl(vcpu_fd, KVM_SET_VCPU_EVENTS, &fresh->events) < 0)
        return -errno;
    int set = ioctl(vcpu_fd, KVM_SET_MSRS, &fresh->msrs);
    if (set < 0)
        return -errno;
    if ((uint32_t)set != fresh->msrs.head.nmsrs)
        return -EIO;
    return ioctl(vcpu_fd, KVM_SET_REGS, regs) < 0 ? -errno : 0;
}
