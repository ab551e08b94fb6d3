/* What the library asks of KVM beside machine.h: its descriptors are made by Python (kvm_machine.h). */
#ifndef TENDER_KVM_OPS_H
#define TENDER_KVM_OPS_H

#include "kvm_machine.h"
#include "machine.h"

extern const struct machine_ops kvm_ops;

/* Of a machine whose ops are kvm_ops. For the library: where the descriptors of /dev/kvm and of the VM are
 * before open(), which takes them. */
struct kvm_machine *kvm_of(struct machine *machine);

/* Before a VM is made: the memory slot of the machine that is kept is emptied, its addresses will be
 * another's. */
void kvm_empty_kept(void);

#endif
