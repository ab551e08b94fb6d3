/*
 * The parts of the host's processor that a guest on KVM may see and use: CPUID leaves and model-specific
 * registers. No ioctl is made here: the code that makes the VM passes both to KVM, and tests pass made-up
 * leaves.
 *
 * CPUID and the MSRs agree. A feature is hidden if it allows another virtual machine or an enclave inside the
 * guest (VMX, SVM, SGX), if it needs an interrupt, or if it is used through an MSR that is denied. An MSR is
 * allowed if a feature that is shown is used through it. Access to a denied MSR raises #GP in the guest,
 * as on a processor that does not have it.
 */
#ifndef TENDER_GUEST_CPU_H
#define TENDER_GUEST_CPU_H

struct kvm_cpuid2;
struct kvm_msr_filter;

/* Removes from the result of KVM_GET_SUPPORTED_CPUID everything that a guest must not see, whatever KVM
 * supports. It clears bits and removes whole leaves, which makes `nent` smaller. There may be any number of
 * entries, in any order, and an entry may appear twice. */
void guest_cpuid_filter(struct kvm_cpuid2 *cpuid);

/* The argument of KVM_X86_SET_MSR_FILTER (Linux 5.10). It is constant, for the whole process. Every MSR
 * that it does not name is denied, except the x2APIC's range, which KVM excludes from filters: without an
 * interrupt controller of KVM's, an access there raises #GP anyway. */
const struct kvm_msr_filter *guest_msr_filter(void);

#endif
