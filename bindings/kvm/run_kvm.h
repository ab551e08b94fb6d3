/* Door 1: the loop around KVM_RUN. The only C that knows <linux/kvm.h>. */
#ifndef TENDER_RUN_KVM_H
#define TENDER_RUN_KVM_H

#include "hypercall.h"

struct kvm_run;

/* What one successful KVM_RUN left in `run` is settled, or becomes an event. Needs no KVM: tests fill `run`.
 */
enum verdict kvm_exit_settle(struct vm *vm, const struct kvm_run *run);

/* Runs the vCPU until something Python must decide; vm->shared.event says what. The GIL is not held. */
void kvm_run_loop(struct vm *vm, int vcpu_fd, struct kvm_run *run);

#endif
