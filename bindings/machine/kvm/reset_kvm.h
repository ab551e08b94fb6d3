/*
 * A vCPU that has run, put back into the state of one that has not.
 *
 * A fresh vCPU's state is the same for all of one host with the same CPUID: it is taken once, from one that
 * has not run, and given to each that has. It is all that KVM itself would carry to another machine in a
 * migration, so what a guest left behind anywhere in it is gone.
 */
#ifndef TENDER_RESET_KVM_H
#define TENDER_RESET_KVM_H

#include "kvm_machine.h"

struct kvm_fresh;

/* The state of a vCPU that has its CPUID and its filter, and has not run. NULL with errno; to be freed. */
struct kvm_fresh *kvm_fresh_take(int kvm_fd, int vcpu_fd);

/* 0 or -errno; after an error the vCPU is not to be used. No thread runs it. */
int kvm_reset(const struct kvm_fresh *fresh, const struct kvm_machine *machine,
              const struct cpu_state *start);

#endif
