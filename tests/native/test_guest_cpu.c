/*
 * What a guest on KVM sees of its processor: invented CPUID tables go through the filter, and the
 * MSR filter is read in the way that KVM reads it. No KVM. Bits and numbers are repeated here from
 * the manuals, not taken from the code.
 */
#include <linux/kvm.h>
#include <stdint.h>
#include <string.h>

#include "guest_cpu.h"
#include "holds.h"

#define CAPACITY 512

static union {
    struct kvm_cpuid2 head;
    uint8_t bytes[sizeof(struct kvm_cpuid2) + CAPACITY * sizeof(struct kvm_cpuid_entry2)];
} table;

static void begin(void)
{
    memset(&table, 0, sizeof table);
}

/* Adds an entry with all bits set: the bits that remain are those that a guest sees. */
static void add(uint32_t function, uint32_t index)
{
    table.head.entries[table.head.nent++] = (struct kvm_cpuid_entry2){
        .function = function,
        .index = index,
        .flags = index ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
        .eax = UINT32_MAX,
        .ebx = UINT32_MAX,
        .ecx = UINT32_MAX,
        .edx = UINT32_MAX,
    };
}

static const struct kvm_cpuid_entry2 *find(uint32_t function, uint32_t index)
{
    for (uint32_t i = 0; i < table.head.nent; i++)
        if (table.head.entries[i].function == function && table.head.entries[i].index == index)
            return &table.head.entries[i];
    return NULL;
}

static bool untouched(const struct kvm_cpuid_entry2 *entry)
{
    return entry && (entry->eax & entry->ebx & entry->ecx & entry->edx) == UINT32_MAX;
}

static void test_virtualisation_is_hidden(void)
{
    begin();
    add(1, 0);
    add(7, 0);
    add(0x12, 0);
    add(0x12, 1);
    add(0x12, 2);
    add(0x80000001, 0);
    add(0x8000000a, 0);
    guest_cpuid_filter(&table.head);
    HOLDS(table.head.nent == 3);
    HOLDS(!(find(1, 0)->ecx & 1u << 5));           /* VMX */
    HOLDS(!(find(1, 0)->ecx & 1u << 6));           /* SMX */
    HOLDS(!(find(0x80000001, 0)->ecx & 1u << 2));  /* SVM */
    HOLDS(!(find(0x80000001, 0)->ecx & 1u << 12)); /* SKINIT */
    HOLDS(!(find(7, 0)->ebx & 1u << 2));           /* SGX */
    HOLDS(!(find(7, 0)->ecx & 1u << 30));          /* SGX_LC */
    HOLDS(!find(0x12, 0) && !find(0x12, 1) && !find(0x12, 2) && !find(0x8000000a, 0));
}

static void test_features_that_unikernels_compute_with_stay(void)
{
    begin();
    add(1, 0);
    add(7, 0);
    add(0x80000001, 0);
    add(0x80000007, 0);
    guest_cpuid_filter(&table.head);
    const struct kvm_cpuid_entry2 *leaf = find(1, 0);
    /* SSE3 PCLMUL SSSE3 FMA CX16 SSE4.1 SSE4.2 MOVBE POPCNT AES XSAVE OSXSAVE AVX F16C RDRAND, hypervisor */
    static const uint8_t ecx[] = {0, 1, 9, 12, 13, 19, 20, 22, 23, 25, 26, 27, 28, 29, 30, 31};
    for (size_t i = 0; i < sizeof ecx; i++)
        HOLDS(leaf->ecx & 1u << ecx[i]);
    /* FPU PSE TSC MSR PAE CX8 SEP PGE CMOV PAT CLFSH MMX FXSR SSE SSE2 */
    static const uint8_t edx[] = {0, 3, 4, 5, 6, 8, 11, 13, 15, 16, 19, 23, 24, 25, 26};
    for (size_t i = 0; i < sizeof edx; i++)
        HOLDS(leaf->edx & 1u << edx[i]);
    leaf = find(7, 0);
    /* FSGSBASE BMI1 AVX2 SMEP BMI2 ERMS INVPCID AVX512F RDSEED ADX SMAP CLFLUSHOPT SHA */
    static const uint8_t ebx[] = {0, 3, 5, 7, 8, 9, 10, 16, 18, 19, 20, 23, 29};
    for (size_t i = 0; i < sizeof ebx; i++)
        HOLDS(leaf->ebx & 1u << ebx[i]);
    leaf = find(0x80000001, 0);
    HOLDS((leaf->edx & 1u << 20) && (leaf->edx & 1u << 27) && (leaf->edx & 1u << 29)); /* NX RDTSCP LM */
    HOLDS(find(0x80000007, 0)->edx & 1u << 8);                                         /* invariant TSC */
}

static void test_leaves_without_a_filter_rule_are_unchanged(void)
{
    /* Vendor, caches, topology, XSAVE with its sub-leaves, TSC frequency, brand, cache sizes, AVX10. */
    static const uint32_t functions[] = {0,          2,          4,          0xb,       0xd,
                                         0x15,       0x16,       0x1f,       0x24,      0x80000000,
                                         0x80000002, 0x80000004, 0x80000006, 0xc0000001};
    begin();
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        for (uint32_t index = 0; index < 3; index++)
            add(functions[i], index);
    add(7, 1);
    guest_cpuid_filter(&table.head);
    HOLDS(table.head.nent == 3 * sizeof functions / sizeof *functions + 1);
    for (uint32_t i = 0; i < table.head.nent; i++)
        HOLDS(untouched(&table.head.entries[i]));
}

static void test_a_feature_whose_msrs_are_denied_is_hidden(void)
{
    static const uint32_t gone[] = {0x0a, 0x14, 0x1c, 0x23, 0x8000001b, 0x8000001c, 0x8000001f, 0x80000022};
    begin();
    for (size_t i = 0; i < sizeof gone / sizeof *gone; i++)
        add(gone[i], 0);
    add(1, 0);
    add(7, 0);
    add(7, 2);
    add(0x80000007, 0);
    add(0x80000008, 0);
    guest_cpuid_filter(&table.head);
    HOLDS(table.head.nent == 5);
    HOLDS(!(find(1, 0)->ecx & (1u << 21 | 1u << 24)));           /* x2APIC, TSC_DEADLINE */
    HOLDS(!(find(1, 0)->edx & (1u << 7 | 1u << 12 | 1u << 14))); /* MCE, MTRR, MCA */
    HOLDS(!(find(7, 0)->edx & 0xfc000000));                      /* SPEC_CTRL ... SSBD */
    /* MD_CLEAR describes what an instruction does. */
    HOLDS(find(7, 0)->edx & 1u << 10);
    HOLDS(!(find(7, 2)->edx & 0x1f));
    HOLDS(find(0x80000007, 0)->ebx == 0 && find(0x80000007, 0)->edx == UINT32_MAX);
    HOLDS(!(find(0x80000008, 0)->ebx & (1u << 12 | 1u << 14 | 1u << 15 | 1u << 24 | 1u << 25)));
    HOLDS(find(0x80000008, 0)->eax == UINT32_MAX && find(0x80000008, 0)->ebx & 1u << 26); /* SSB_NO */
}

static void test_only_the_name_stays_of_kvms_own_leaves(void)
{
    begin();
    add(0x40000000, 0);
    add(0x40000001, 0);
    add(0x40000003, 0); /* Hyper-V's, or another's */
    add(0x40000100, 0);
    add(0x4fffffff, 0);
    guest_cpuid_filter(&table.head);
    HOLDS(table.head.nent == 2);
    HOLDS(untouched(find(0x40000000, 0)));
    HOLDS(find(0x40000001, 0)->eax == 0 && find(0x40000001, 0)->edx == 0);
}

static void test_any_number_of_entries(void)
{
    begin();
    guest_cpuid_filter(&table.head);
    HOLDS(table.head.nent == 0);
    for (uint32_t i = 0; i < CAPACITY; i++) /* every second one is removed */
        add(i % 2 ? 0x12 : 4, i);
    guest_cpuid_filter(&table.head);
    HOLDS(table.head.nent == CAPACITY / 2);
    for (uint32_t i = 0; i < CAPACITY / 2; i++)
        HOLDS(table.head.entries[i].index == 2 * i && untouched(&table.head.entries[i]));
    begin();
    for (int i = 0; i < 5; i++) /* a leaf that occurs several times is filtered each time */
        add(1, 0);
    guest_cpuid_filter(&table.head);
    for (int i = 0; i < 5; i++)
        HOLDS(!(table.head.entries[i].ecx & 1u << 5));
    begin();
    for (int i = 0; i < 100; i++)
        add(0x8000000a, 0);
    guest_cpuid_filter(&table.head);
    HOLDS(table.head.nent == 0);
}

/* Does the same as kvm_msr_allowed(). */
static bool allowed(uint32_t msr, uint32_t direction)
{
    const struct kvm_msr_filter *filter = guest_msr_filter();
    for (int i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++) {
        const struct kvm_msr_filter_range *range = &filter->ranges[i];
        if (!(range->flags & direction) || msr < range->base || msr - range->base >= range->nmsrs)
            continue;
        uint32_t bit = msr - range->base;
        return range->bitmap[bit / 8] >> bit % 8 & 1;
    }
    return !(filter->flags & KVM_MSR_FILTER_DEFAULT_DENY);
}

static bool among(uint32_t msr, const uint32_t *list, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (list[i] == msr)
            return true;
    return false;
}

static void test_msrs_that_are_allowed_are_these_and_no_others(void)
{
    /* EFER, STAR, LSTAR, CSTAR, FMASK, FS base, GS base, KERNEL_GS base, TSC_AUX; the three of SYSENTER */
    static const uint32_t both[] = {0xc0000080, 0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, 0xc0000100,
                                    0xc0000101, 0xc0000102, 0xc0000103, 0x174,      0x175,      0x176};
    static const uint32_t read_only[] = {0x10, 0x1b, 0x277}; /* TSC, APIC_BASE, PAT */
    static const struct {
        uint32_t from, to;
    } spans[] = {{0, 0x4000},
                 {0x40000000, 0x40000200},
                 {0x4b564d00, 0x4b564d10},
                 {0xc0000000, 0xc0000400},
                 {0xc0010000, 0xc0011200},
                 {0xfffffff0, 0xffffffff}};
    size_t reads = 0, writes = 0, wrong = 0;
    for (size_t i = 0; i < sizeof spans / sizeof *spans; i++)
        for (uint32_t msr = spans[i].from; msr < spans[i].to; msr++) {
            bool rw = among(msr, both, sizeof both / sizeof *both);
            bool ro = among(msr, read_only, sizeof read_only / sizeof *read_only);
            wrong += allowed(msr, KVM_MSR_FILTER_READ) != (rw || ro);
            wrong += allowed(msr, KVM_MSR_FILTER_WRITE) != rw;
            reads += allowed(msr, KVM_MSR_FILTER_READ);
            writes += allowed(msr, KVM_MSR_FILTER_WRITE);
        }
    HOLDS(wrong == 0);
    HOLDS(reads == 15 && writes == 12);
    /* The most important ones, by name. */
    HOLDS(!allowed(0x3a, KVM_MSR_FILTER_READ));        /* FEATURE_CONTROL */
    HOLDS(!allowed(0x48, KVM_MSR_FILTER_WRITE));       /* SPEC_CTRL */
    HOLDS(!allowed(0x480, KVM_MSR_FILTER_READ));       /* VMX capabilities */
    HOLDS(!allowed(0xc0010114, KVM_MSR_FILTER_READ));  /* VM_CR */
    HOLDS(!allowed(0xc0010117, KVM_MSR_FILTER_WRITE)); /* VM_HSAVE_PA */
}

static void test_kvm_takes_the_msr_filter(void)
{
    const struct kvm_msr_filter *filter = guest_msr_filter();
    HOLDS(filter->flags == KVM_MSR_FILTER_DEFAULT_DENY);
    for (int i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++) {
        const struct kvm_msr_filter_range *range = &filter->ranges[i];
        HOLDS(!(range->flags & ~(uint32_t)(KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE)));
        HOLDS((range->nmsrs + 63) / 64 * 8 <= KVM_MSR_FILTER_MAX_BITMAP_SIZE);
        HOLDS(!range->nmsrs == !range->bitmap);
    }
}

int main(void)
{
    test_virtualisation_is_hidden();
    test_features_that_unikernels_compute_with_stay();
    test_leaves_without_a_filter_rule_are_unchanged();
    test_a_feature_whose_msrs_are_denied_is_hidden();
    test_only_the_name_stays_of_kvms_own_leaves();
    test_any_number_of_entries();
    test_msrs_that_are_allowed_are_these_and_no_others();
    test_kvm_takes_the_msr_filter();
    return claims_end();
}
