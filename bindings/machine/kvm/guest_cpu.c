#include "guest_cpu.h"

#include <linux/kvm.h>
#include <linux/kvm_para.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BIT(n) (1u << (n))
#define ANY    UINT32_MAX /* every index of a leaf */

/* Leaves that are removed as a whole: Intel SDM vol. 2, CPUID; AMD APM vol. 3, appendix E. */
static const uint32_t hidden_leaves[] = {
    0x0a,       /* performance counters: their MSRs are denied */
    0x12,       /* SGX */
    0x14,       /* processor trace: MSRs */
    0x1c,       /* last branch records: MSRs */
    0x23,       /* performance counters, extended */
    0x8000000a, /* SVM */
    0x8000001b, /* instruction-based sampling: MSRs */
    0x8000001c, /* lightweight profiling: MSRs */
    0x8000001f, /* memory encryption: for a guest and the firmware of its host */
    0x80000022, /* performance counters, AMD's second version */
};

/* Bits that are cleared. All other bits stay as KVM reports them. */
static const struct hidden_bits {
    uint32_t function, index;
    uint32_t eax, ebx, ecx, edx;
} hidden_bits[] = {
    {
        .function = 1,
        .index = ANY,
        .ecx = BIT(2) | BIT(4) /* debug store: MSRs */ | BIT(5) /* VMX */ | BIT(6) /* SMX */ |
               BIT(15) /* PERF_CAPABILITIES: an MSR */ | BIT(21) |
               BIT(24), /* x2APIC, its timer: interrupts */
        .edx = BIT(7) | BIT(14) /* machine checks: MSRs */ | BIT(12) /* MTRRs */ | BIT(21) /* debug store */,
    },
    {
        .function = 7,
        .index = 0,
        .ebx = BIT(1) /* TSC_ADJUST: an MSR */ | BIT(2) /* SGX */ | BIT(25) /* processor trace */,
        .ecx = BIT(7) /* shadow stacks: MSRs */ | BIT(30) /* SGX's launch control */,
        .edx = BIT(19) /* last branch records */ | BIT(20) /* indirect branch tracking: MSRs */ | BIT(26) |
               BIT(27) | BIT(28) | BIT(29) | BIT(30) | BIT(31), /* SPEC_CTRL, PRED_CMD and similar */
    },
    {.function = 7, .index = 2, .edx = 0x1f}, /* bits of SPEC_CTRL */
    /* KVM's own features need an interrupt, an MSR or another vCPU; its name in leaf 0x40000000 stays. */
    {.function = KVM_CPUID_FEATURES, .index = ANY, .eax = UINT32_MAX, .edx = UINT32_MAX},
    {
        .function = 0x80000001,
        .index = ANY,
        .ecx = BIT(2) /* SVM */ | BIT(3) /* extended APIC space */ | BIT(9) /* OSVW: MSRs */ |
               BIT(10) /* instruction-based sampling */ | BIT(12) /* SKINIT */ |
               BIT(15) /* lightweight profiling */ | BIT(23) | BIT(24) | BIT(28), /* performance counters */
        .edx = BIT(7) | BIT(12) | BIT(14),                                        /* as in leaf 1, for AMD */
    },
    {.function = 0x80000007, .index = ANY, .ebx = UINT32_MAX}, /* machine checks; EDX has the invariant TSC */
    {
        .function = 0x80000008,
        .index = ANY,
        .ebx = BIT(12) | BIT(14) | BIT(15) | BIT(16) | BIT(17) | BIT(18) | BIT(24) | BIT(25) | BIT(28) |
               BIT(30), /* AMD's SPEC_CTRL, VIRT_SPEC_CTRL and PRED_CMD */
    },
    {.function = 0x80000021, .index = ANY, .eax = BIT(27)}, /* a bit of PRED_CMD */
};

static bool leaf_is_hidden(uint32_t function)
{
    /* 0x40000000 to 0x4fffffff belong to the hypervisor. Of KVM's leaves, the name and the features stay. */
    if (function >> 28 == 4)
        return function != KVM_CPUID_SIGNATURE && function != KVM_CPUID_FEATURES;
    for (size_t i = 0; i < sizeof hidden_leaves / sizeof *hidden_leaves; i++)
        if (hidden_leaves[i] == function)
            return true;
    return false;
}

static void clear_bits(struct kvm_cpuid_entry2 *entry)
{
    for (size_t i = 0; i < sizeof hidden_bits / sizeof *hidden_bits; i++) {
        const struct hidden_bits *hidden = &hidden_bits[i];
        if (hidden->function != entry->function || (hidden->index != ANY && hidden->index != entry->index))
            continue;
        entry->eax &= ~hidden->eax;
        entry->ebx &= ~hidden->ebx;
        entry->ecx &= ~hidden->ecx;
        entry->edx &= ~hidden->edx;
    }
}

void guest_cpuid_filter(struct kvm_cpuid2 *cpuid)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < cpuid->nent; i++) {
        struct kvm_cpuid_entry2 entry = cpuid->entries[i];
        if (leaf_is_hidden(entry.function))
            continue;
        clear_bits(&entry);
        cpuid->entries[kept++] = entry;
    }
    cpuid->nent = kept;
}

/* Numbers and names: Intel SDM vol. 4, table 2-2. The bitmaps are whole 64-bit words: KVM copies them so. */
#define MSR_TSC       0x10u
#define MSR_APIC_BASE 0x1bu
#define MSR_SYSENTER  0x174u /* CS, ESP, EIP */
#define MSR_PAT       0x277u
#define MSR_EFER      0xc0000080u
#define MSR_STAR      0xc0000081u /* STAR, LSTAR, CSTAR, FMASK */
#define MSR_FS_BASE   0xc0000100u /* FS, GS, KERNEL_GS */
#define MSR_TSC_AUX   0xc0000103u

#define LOW_MSRS                 (MSR_PAT - MSR_TSC + 1)
#define HIGH_MSRS                (MSR_TSC_AUX - MSR_EFER + 1)
#define WORDS(n)                 (((n) + 63) / 64)
#define WORD_OF(msr, base)       (((msr) - (base)) / 64)
#define BITS_OF(msr, base, mask) ((uint64_t)(mask) << ((msr) - (base)) % 64)

/*
 * Read-only for the guest: the clock (a guest that set it would lose its time), the local APIC's address (0:
 * there is none) and the page attribute table (another value would only slow down the memory that the guest
 * shares with its host).
 */
static const uint64_t low_read[WORDS(LOW_MSRS)] = {
    [WORD_OF(MSR_TSC, MSR_TSC)] = BITS_OF(MSR_TSC, MSR_TSC, 1) | BITS_OF(MSR_APIC_BASE, MSR_TSC, 1),
    [WORD_OF(MSR_SYSENTER, MSR_TSC)] = BITS_OF(MSR_SYSENTER, MSR_TSC, 7),
    [WORD_OF(MSR_PAT, MSR_TSC)] = BITS_OF(MSR_PAT, MSR_TSC, 1),
};
static const uint64_t sysenter_write[1] = {7};
/* EFER for NXE, segment bases for thread-local storage, SYSCALL's: KVM loads these for each guest. */
static const uint64_t high[WORDS(HIGH_MSRS)] = {
    [WORD_OF(MSR_EFER, MSR_EFER)] = BITS_OF(MSR_EFER, MSR_EFER, 1) | BITS_OF(MSR_STAR, MSR_EFER, 0xf),
    [WORD_OF(MSR_FS_BASE, MSR_EFER)] = BITS_OF(MSR_FS_BASE, MSR_EFER, 7) | BITS_OF(MSR_TSC_AUX, MSR_EFER, 1),
};
_Static_assert(WORD_OF(MSR_TSC, MSR_TSC) == WORD_OF(MSR_APIC_BASE, MSR_TSC), "in one word");
_Static_assert((MSR_SYSENTER - MSR_TSC) % 64 + 3 <= 64, "in one word");
_Static_assert(WORD_OF(MSR_FS_BASE, MSR_EFER) == WORD_OF(MSR_TSC_AUX, MSR_EFER), "in one word");

/* KVM uses the first range that contains the register and the direction. */
static const struct kvm_msr_filter msr_filter = {
    .flags = KVM_MSR_FILTER_DEFAULT_DENY,
    .ranges =
        {
            {KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE, HIGH_MSRS, MSR_EFER, (__u8 *)high},
            {KVM_MSR_FILTER_READ, LOW_MSRS, MSR_TSC, (__u8 *)low_read},
            {KVM_MSR_FILTER_WRITE, 3, MSR_SYSENTER, (__u8 *)sysenter_write},
        },
};

const struct kvm_msr_filter *guest_msr_filter(void)
{
    return &msr_filter;
}
