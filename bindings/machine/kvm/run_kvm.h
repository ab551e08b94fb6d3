/* KVM's backend: the loop around KVM_RUN. Only here and in guest_cpu.c is <linux/kvm.h> known. */
#ifndef TENDER_RUN_KVM_H
#define TENDER_RUN_KVM_H

#include "hypercall.h"

struct kvm_run;

/* The VM's memory becomes slot 0 of the machine, at address 0. 0 or -errno. */
int kvm_set_memory(const struct vm *vm, int machine_fd);

/* The slot is gone, or stays: that costs time, no more (owner.c). */
void kvm_clear_memory(int machine_fd);

/* What one successful KVM_RUN left in `run` is handled, or becomes an event. Needs no KVM: tests fill `run`.
 */
enum verdict kvm_exit_handle(struct vm *vm, const struct kvm_run *run);

/* Runs the vCPU until something Python must decide; vm->shared.event says what. The GIL is not held. */
void kvm_run_loop(struct vm *vm, int vcpu_fd, struct kvm_run *run);

#endif
