/* What the library needs of KVM in addition to machine.h: Python makes its descriptors (kvm_machine.h). */
#ifndef TENDER_KVM_OPS_H
#define TENDER_KVM_OPS_H

#include "kvm_machine.h"
#include "machine.h"

extern const struct machine_ops kvm_ops;

/* For the library, with a machine whose ops are kvm_ops: where it puts the descriptors of /dev/kvm and of the
 * VM before open(), which uses them. */
struct kvm_machine *kvm_of(struct machine *machine);

/* Call it before a VM is made: it empties the memory slot of the kept machine, because its addresses will
 * belong to another VM. */
void kvm_empty_kept(void);

#endif
