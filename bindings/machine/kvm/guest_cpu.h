/*
 * What of the host's processor a guest on KVM may see and touch: CPUID leaves and model-specific registers.
 * Pure: no ioctl is made here, whoever makes the VM hands both to KVM, and tests hand in made-up leaves.
 *
 * The two tell one story. A feature is hidden if it is a way into another machine within (VMX, SVM, SGX), if
 * it needs an interrupt, or if it is used through an MSR that is denied; an MSR is allowed if a feature that
 * is shown is used through it. A denied one is #GP in the guest, as on a processor that lacks it.
 */
#ifndef TENDER_GUEST_CPU_H
#define TENDER_GUEST_CPU_H

struct kvm_cpuid2;
struct kvm_msr_filter;

/* Takes out of what KVM_GET_SUPPORTED_CPUID gave all that a guest shall not see, whatever KVM supports: bits
 * are cleared, whole leaves go and `nent` shrinks. Any number of entries, in any order, any of them twice. */
void guest_cpuid_filter(struct kvm_cpuid2 *cpuid);

/* The argument of KVM_X86_SET_MSR_FILTER (Linux 5.10); constant, of the whole process. Everything that it
 * does not name is denied, but for the x2APIC's range, which KVM leaves out of filters: without an interrupt
 * controller of KVM's, those are #GP anyway. */
const struct kvm_msr_filter *guest_msr_filter(void);

#endif
