#define _GNU_SOURCE
#include "reset_kvm.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "kvm_cpu_state.h"

#define MSRS_MAX 1024 /* KVM 6.12 lists about 100 to 300, depending on the processor */

/* struct kvm_msrs and struct kvm_msr_list end in a flexible array. */
struct msrs {
    struct kvm_msrs head;
    struct kvm_msr_entry entries[MSRS_MAX];
};

struct msr_list {
    struct kvm_msr_list head;
    uint32_t indices[MSRS_MAX];
};

struct kvm_fresh {
    struct cpu_state state; /* CPU_FPU and CPU_DEBUG; the MSRs of CPU_MSRS are among `msrs` */
    struct kvm_vcpu_events events;
    struct msrs msrs;
};

/* Takes the MSRs that can be read and written back unchanged. KVM lists what a migration transfers, but this
 * processor may lack a few of them, and KVM stops at the first MSR that it refuses. */
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

struct kvm_fresh *kvm_fresh_take(int kvm_fd, int vcpu_fd)
{
    struct kvm_fresh *fresh = calloc(1, sizeof *fresh);
    if (!fresh)
        return NULL;
    const int refused = kvm_cpu_state_get(vcpu_fd, CPU_FPU | CPU_DEBUG, &fresh->state);
    errno = -refused;
    if (refused < 0 || ioctl(vcpu_fd, KVM_GET_VCPU_EVENTS, &fresh->events) < 0 ||
        take_msrs(fresh, kvm_fd, vcpu_fd) < 0) {
        int error = errno;
        free(fresh);
        errno = error;
        return NULL;
    }
    return fresh;
}

/* The last exit was half an instruction. KVM finishes it at the next KVM_RUN, which must not belong to
 * the next guest. With immediate_exit that is all that KVM_RUN does (KVM API, 4.13). */
static int finish_last_exit(int vcpu_fd, struct kvm_run *run)
{
    run->immediate_exit = 1;
    int answer = ioctl(vcpu_fd, KVM_RUN, 0);
    int error = errno;
    run->immediate_exit = 0;
    return answer < 0 && error == EINTR ? 0 : answer < 0 ? -error : -EIO;
}

int kvm_reset(const struct kvm_fresh *fresh, const struct kvm_machine *machine, const struct cpu_state *start)
{
    const int vcpu_fd = machine->vcpu_fd;
    const char *name = "";
    int error = finish_last_exit(vcpu_fd, machine->run);
    if (!error)
        error = kvm_cpu_state_set(vcpu_fd, CPU_SYSTEM, start, &name);
    if (!error)
        error = kvm_cpu_state_set(vcpu_fd, CPU_ALL, &fresh->state, &name);
    if (error)
        return error;
    if (ioctl(vcpu_fd, KVM_SET_VCPU_EVENTS, &fresh->events) < 0)
        return -errno;
    int set = ioctl(vcpu_fd, KVM_SET_MSRS, &fresh->msrs);
    if (set < 0)
        return -errno;
    if ((uint32_t)set != fresh->msrs.head.nmsrs)
        return -EIO;
    return kvm_cpu_state_set(vcpu_fd, CPU_GENERAL, start, &name);
}
