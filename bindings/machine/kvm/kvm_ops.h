/* What the library's road has to KVM beside machine.h: the descriptors are made by Python (kvm_machine.h). */
#ifndef TENDER_KVM_OPS_H
#define TENDER_KVM_OPS_H

#include "kvm_machine.h"
#include "machine.h"

extern const struct machine_ops kvm_ops;

/* Of a machine whose ops are kvm_ops. */
struct kvm_machine *kvm_of(struct machine *machine);

/* With a VM, whose memory is mapped, and with a vCPU: kvm_machine_prepare() and kvm_machine_finish(), the
 * guest to start at `entry`. */
int kvm_library_prepare(struct machine *machine, struct machine_error *error);
int kvm_library_finish(struct machine *machine, gpa_t entry, struct machine_error *error);

/* Before a VM is made: the memory slot of the machine that is kept is emptied, its addresses will be
 * another's. */
void kvm_empty_kept(void);

#endif
