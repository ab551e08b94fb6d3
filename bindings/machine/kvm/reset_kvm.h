/*
 * Puts a vCPU that has run back into the state of a vCPU that has not run.
 *
 * The state of a fresh vCPU is the same for all vCPUs of a host with the same CPUID. It is taken once, from a
 * vCPU that has not run, and written to each vCPU that has. It is everything that KVM itself would
 * transfer in a migration to another machine, so whatever a guest left behind in it is gone.
 */
#ifndef TENDER_RESET_KVM_H
#define TENDER_RESET_KVM_H

#include "kvm_machine.h"

struct kvm_fresh;

/* Takes the state of a vCPU that has its CPUID and its filter, and has not run. NULL with errno; free()
 * it. */
struct kvm_fresh *kvm_fresh_take(int kvm_fd, int vcpu_fd);

/* 0 or -errno; after an error the vCPU must not be used. No thread may be running it. */
int kvm_reset(const struct kvm_fresh *fresh, const struct kvm_machine *machine,
              const struct cpu_state *start);

#endif
