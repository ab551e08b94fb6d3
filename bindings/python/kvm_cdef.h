/*
 * The part of <linux/kvm.h> and <linux/if_tun.h> that Python uses, for cffi only: `...` is filled in by the
 * compiler, so no offset and no number is written here.
 */

#define KVM_API_VERSION ...
#define KVM_GET_API_VERSION ...
#define KVM_CREATE_VM ...
#define KVM_CHECK_EXTENSION ...
#define KVM_GET_VCPU_MMAP_SIZE ...
#define KVM_GET_SUPPORTED_CPUID ...
#define KVM_CREATE_VCPU ...
#define KVM_SET_USER_MEMORY_REGION ...
#define KVM_SET_CPUID2 ...
#define KVM_X86_SET_MSR_FILTER ...
#define KVM_GET_SREGS ...
#define KVM_SET_SREGS ...
#define KVM_GET_REGS ...
#define KVM_SET_REGS ...
#define KVM_ENABLE_CAP ...
#define KVM_GET_TSC_KHZ ...
#define KVM_SET_SIGNAL_MASK ...
#define KVM_RUN ...

#define KVM_CAP_USER_MEMORY ...
#define KVM_CAP_GET_TSC_KHZ ...
#define KVM_CAP_IOEVENTFD ...
#define KVM_CAP_NR_MEMSLOTS ...
#define KVM_CAP_MAX_VCPUS ...
#define KVM_CAP_IMMEDIATE_EXIT ...
#define KVM_CAP_X86_MSR_FILTER ...
#define KVM_CAP_ENFORCE_PV_FEATURE_CPUID ...

#define TUNSETIFF ...
#define TUNGETIFF ...

struct kvm_regs {
    uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp;
    uint64_t r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags;
    ...;
};

struct kvm_segment {
    uint64_t base;
    uint32_t limit;
    uint16_t selector;
    uint8_t type, present, dpl, db, s, l, g, avl, unusable;
    ...;
};

struct kvm_dtable {
    uint64_t base;
    uint16_t limit;
    ...;
};

struct kvm_sregs {
    struct kvm_segment cs, ds, es, fs, gs, ss, tr, ldt;
    struct kvm_dtable gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, cr8, efer, apic_base;
    ...;
};

struct kvm_userspace_memory_region {
    uint32_t slot, flags;
    uint64_t guest_phys_addr, memory_size, userspace_addr;
    ...;
};

struct kvm_cpuid_entry2 {
    uint32_t function, index, flags, eax, ebx, ecx, edx;
    ...;
};

struct kvm_cpuid2 {
    uint32_t nent;
    ...;
};

struct kvm_msr_filter {
    uint32_t flags;
    ...;
};

struct kvm_enable_cap {
    uint32_t cap, flags;
    unsigned long long args[4];
    ...;
};

struct kvm_signal_mask {
    uint32_t len;
    ...;
};
