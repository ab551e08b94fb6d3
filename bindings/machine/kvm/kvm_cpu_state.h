/* Transfers struct cpu_state to and from a vCPU. It makes only the calls that the requested parts need. */
#ifndef TENDER_KVM_CPU_STATE_H
#define TENDER_KVM_CPU_STATE_H

#include "cpu_state.h"

struct kvm_sregs;
struct kvm_regs;

/* Reads `parts` of a vCPU that no thread runs, and sets state->known to `parts`. 0 or -errno. */
int kvm_cpu_state_get(int vcpu_fd, uint32_t parts, struct cpu_state *state);

/* Sets those of `parts` that the state contains, each as a whole. 0; or -errno, with the name of the ioctl in
 * *name. After an error the vCPU has some of the new state. */
int kvm_cpu_state_set(int vcpu_fd, uint32_t parts, const struct cpu_state *state, const char **name);

/* Conversions to the structures of the ioctls. */
void kvm_sregs_of(const struct cpu_system *system, struct kvm_sregs *sregs);
void kvm_regs_of(const struct cpu_general *general, struct kvm_regs *regs);

#endif
