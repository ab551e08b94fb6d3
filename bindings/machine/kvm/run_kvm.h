/* KVM's backend: the loop around KVM_RUN. <linux/kvm.h> is known only in machine/kvm. */
#ifndef TENDER_RUN_KVM_H
#define TENDER_RUN_KVM_H

#include "hypercall.h"

struct kvm_run;

/* Makes the VM's memory slot 0 of the machine, at address 0. 0 or -errno. */
int kvm_set_memory(const struct vm *vm, int machine_fd);

/* Empties the slot. If that fails, the slot stays, which only costs time (kvm_ops.c). */
void kvm_clear_memory(int machine_fd);

/* Handles what one successful KVM_RUN left in `run`, or makes it an event. It needs no KVM: tests fill
 * `run`. */
enum verdict kvm_exit_handle(struct vm *vm, const struct kvm_run *run);

/* Runs the vCPU until Python must decide; vm->shared.event says why. The GIL is not held. */
void kvm_run_loop(struct vm *vm, int vcpu_fd, struct kvm_run *run);

#endif
