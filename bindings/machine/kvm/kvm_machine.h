/*
 * A virtual machine on /dev/kvm: one vCPU, one memory slot. For the command and for the library, the state
 * behind the descriptors is made here. The library makes the descriptors of /dev/kvm and of the VM itself
 * (tender/backend/kvm.py).
 *   kvm_machine_open()      /dev/kvm and the VM                   the library: open_kvm(), CREATE_VM
 *   kvm_machine_prepare()   its MSR filter, its memory
 *   kvm_machine_add_vcpu()  the vCPU
 *   kvm_machine_finish()    the CPUID that the guest sees, registers, the clock's frequency
 */
#ifndef TENDER_KVM_MACHINE_H
#define TENDER_KVM_MACHINE_H

#include <stddef.h>
#include <stdint.h>

#include "cpu_state.h"
#include "machine_types.h"
#include "vm.h"

struct kvm_run;
struct kvm_cpuid2;

struct kvm_machine {
    int kvm_fd, vm_fd, vcpu_fd; /* -1: not open */
    struct kvm_run *run;        /* NULL: not mapped */
    size_t run_bytes;
    uint64_t tsc_hz;
};

#define KVM_MACHINE_NONE ((struct kvm_machine){.kvm_fd = -1, .vm_fd = -1, .vcpu_fd = -1})

/* Each returns 0, or -1 with `error` filled; kvm_machine_close() then releases what has been made. */
int kvm_machine_open(struct kvm_machine *machine, struct machine_error *error);
int kvm_machine_prepare(struct kvm_machine *machine, const struct vm *vm, struct machine_error *error);
int kvm_machine_add_vcpu(struct kvm_machine *machine, struct machine_error *error);
int kvm_machine_finish(struct kvm_machine *machine, const struct cpu_state *start,
                       struct machine_error *error);

/* The CPUID leaves that this process's guests see, with space for CPUID_ENTRIES; NULL: no VM was made yet. */
struct kvm_cpuid2 *kvm_machine_cpuid(void);

/* From now on KVM_RUN returns immediately (EINTR). A signal handler may call it, even before the VM is
 * made. */
void kvm_machine_leave(struct kvm_machine *machine);

/* Idempotent. */
void kvm_machine_close(struct kvm_machine *machine);

#endif
