#define _GNU_SOURCE
#include "run_kvm.h"

#include <errno.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>

#include "copy_fault.h"
#include "ring.h"

int kvm_set_memory(const struct vm *vm, int machine_fd)
{
    const struct kvm_userspace_memory_region region = {
        .memory_size = vm->memory.mapped_bytes,
        .userspace_addr = (uintptr_t)vm->memory.hva,
    };
    return ioctl(machine_fd, KVM_SET_USER_MEMORY_REGION, &region) < 0 ? -errno : 0;
}

static enum verdict leave(struct vm *vm, enum vm_event_kind kind, uint64_t detail)
{
    vm->shared->event.kind = kind;
    vm->shared->event.detail = detail;
    return LEAVE;
}

static enum verdict settle_io(struct vm *vm, const struct kvm_run *run)
{
    if (run->io.direction != KVM_EXIT_IO_OUT || run->io.size != 4 || run->io.count != 1)
        return leave_bad_port(vm, run->io.port);
    uint32_t gpa;
    memcpy(&gpa, (const uint8_t *)run + run->io.data_offset, sizeof gpa);
    if (run->io.port == HVT_PORT_NET_KICK && vm->ring.shared)
        return ring_kicked(vm);
    return hypercall_out(vm, run->io.port, gpa);
}

enum verdict kvm_exit_settle(struct vm *vm, const struct kvm_run *run)
{
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        return settle_io(vm, run);
    case KVM_EXIT_FAIL_ENTRY:
        return leave(vm, EVENT_ENTRY_FAILURE, run->fail_entry.hardware_entry_failure_reason);
    case KVM_EXIT_INTERNAL_ERROR:
        return leave(vm, EVENT_INTERNAL_ERROR, run->internal.suberror);
    default:
        return leave(vm, EVENT_UNHANDLED_EXIT, run->exit_reason);
    }
}

static enum verdict settle_failed_run(struct vm *vm, int error)
{
    switch (error) {
    case EINTR:
        return leave_interrupted(vm);
    case EAGAIN:
        return CONTINUE;
    case EFAULT: /* the second level found no right to write in our mapping: gup fails, KVM gives up */
        return leave(vm, EVENT_TRANSLATION_FAULT, 0);
    default:
        vm->shared->event.os_error = error;
        return leave(vm, EVENT_HOST_ERROR, 0);
    }
}

/* KVM_RUN waits with this mask in place of the thread's, atomically (KVM API, 4.20). */
static int set_run_mask(const struct vm *vm, int vcpu_fd)
{
    struct {
        struct kvm_signal_mask head;
        uint8_t bits[8]; /* the kernel's sigset_t; glibc's is larger and begins with it */
    } mask;
    mask.head.len = sizeof mask.bits;
    memcpy(mask.head.sigset, &vm->run_mask, sizeof mask.bits);
    return ioctl(vcpu_fd, KVM_SET_SIGNAL_MASK, &mask);
}

static uint64_t guest_rip(int vcpu_fd)
{
    struct kvm_regs regs;
    return ioctl(vcpu_fd, KVM_GET_REGS, &regs) == 0 ? regs.rip : 0;
}

void kvm_run_loop(struct vm *vm, int vcpu_fd, struct kvm_run *run)
{
    struct vm_shared *shared = vm->shared;
    struct vm_timeline *timeline = &shared->timeline;
    sigset_t saved;
    vm_enter(vm, &saved);
    copy_fault_prepare(vm);
    shared->event = (struct vm_event){0};

    enum verdict verdict = CONTINUE;
    if (!vm->signals_at_will && set_run_mask(vm, vcpu_fd) < 0)
        verdict = settle_failed_run(vm, errno);
    else
        verdict = hypercall_resume(vm);
    if (!timeline->first_run)
        timeline->first_run = monotonic_ns();
    while (verdict == CONTINUE) {
        if (atomic_load_explicit(&vm->stop_requested, memory_order_relaxed)) {
            verdict = leave_stopped(vm);
            break;
        }
        if (ioctl(vcpu_fd, KVM_RUN, 0) < 0) {
            verdict = settle_failed_run(vm, errno);
            continue;
        }
        if (!timeline->first_exit)
            timeline->first_exit = monotonic_ns();
        shared->counters.exits++;
        verdict = kvm_exit_settle(vm, run);
    }
    if (shared->event.kind != EVENT_INTERRUPTED && shared->event.kind != EVENT_CONSOLE) {
        ring_end(vm);
        timeline->guest_exit = monotonic_ns();
        shared->event.rip = guest_rip(vcpu_fd);
    }
    vm_leave(vm, &saved);
}
