/* Control and debug registers, MSRs and XCR0: what a ring-0 guest may write, and what it reads back. */
#include "ring0_guest.h"

static void test_start_state(void)
{
    memset(&state, 0xff, sizeof state);
    system_state_init(&state, HOST_XCR0);
    HOLDS(state.gdtr.base == 0x1000 && state.gdtr.limit == 23);
    HOLDS(state.idtr.base == 0 && state.idtr.limit == 0);
    HOLDS(state.cr0 == 0x80010021 && state.cr3 == 0x2000 && state.cr4 == 0x620 && state.efer == 0x500);
    HOLDS(state.cr2 == 0 && state.cr8 == 0 && state.xcr0 == 1 && state.host_xcr0 == HOST_XCR0);
    HOLDS(state.selector[SEG_CS] == 8 && state.selector[SEG_SS] == 16 && state.selector[SEG_GS] == 16);
    HOLDS(state.tr.limit == 0 && state.ldtr.limit == 0 && state.tr.selector == 0 && !state.interrupts);
    HOLDS(state.fs_base == 0 && state.gs_base == 0 && state.kernel_gs_base == 0 && !state.bases_changed);
}

static void test_control_registers(void)
{
    struct code code = ASM("mov %%cr2,%%r9");
    fresh(code);
    state.cr2 = 0xfeedfacecafe;
    HOLDS(emulated(code) && cpu.gpr[9] == 0xfeedfacecafe);
    fresh(code = ASM("mov %%r10,%%cr2"));
    HOLDS(emulated(code) && state.cr2 == 0xaaaaaaaaaaaaaaaa);
    fresh(code = ASM("mov %%cr0,%%rax"));
    HOLDS(emulated(code) && cpu.gpr[GPR_RAX] == (HVT_CR0 | 0x10)); /* ET is hardwired */
    fresh(code = ASM("mov %%cr3,%%rcx"));
    HOLDS(emulated(code) && cpu.gpr[GPR_RCX] == HVT_PML4_GPA);
    fresh(code = ASM("mov %%cr4,%%rdi"));
    HOLDS(emulated(code) && cpu.gpr[GPR_RDI] == HVT_CR4);
    fresh(code = ASM("mov %%cr8,%%rbx"));
    state.cr8 = 7;
    HOLDS(emulated(code) && cpu.gpr[GPR_RBX] == 7);
    fresh(code = ASM("mov %%rbx,%%cr8"));
    cpu.gpr[GPR_RBX] = 15;
    HOLDS(emulated(code) && state.cr8 == 15);
    fresh(code);
    cpu.gpr[GPR_RBX] = 16;
    HOLDS(faults(VECTOR_GP, 0));
    fresh(code = BYTES(0x0f, 0x20, 0x10)); /* mov %cr2,%rax with mod 0: no displacement, no SIB */
    state.cr2 = 3;
    HOLDS(emulated(code) && cpu.gpr[GPR_RAX] == 3);
    fresh(code = BYTES(0x0f, 0x22, 0x94)); /* mod 2, rm 4: still mov %rsp,%cr2 */
    HOLDS(emulated(code) && state.cr2 == STACK);
    for (uint8_t number = 0; number < 16; number++) {
        if (number == 0 || number == 2 || number == 3 || number == 4 || number == 8)
            continue;
        fresh(BYTES(number & 8 ? 0x44 : 0x40, 0x0f, 0x20, (uint8_t)(0xc0 | (number & 7) << 3)));
        HOLDS(faults(VECTOR_UD, 0));
    }

    fresh(code = ASM("mov %%rbx,%%cr3"));
    cpu.gpr[GPR_RBX] = HVT_PML4_GPA;
    HOLDS(emulated(code));
    fresh(code);
    cpu.gpr[GPR_RBX] = DATA;
    HOLDS(answers(UNSUPPORTED) && out.length == 3);
}

struct written {
    uint64_t value;
    enum emulation answer; /* GUEST_FAULT means #GP(0) */
};

static bool write_answers(struct code code, struct written written)
{
    fresh(code);
    cpu.gpr[GPR_RBX] = written.value;
    if (written.answer == EMULATED)
        return emulated(code);
    return written.answer == GUEST_FAULT ? faults(VECTOR_GP, 0) : answers(written.answer);
}

static void test_control_register_bits(void)
{
    static const struct written cr0[] = {
        {HVT_CR0, EMULATED},
        {HVT_CR0 | 0x2, EMULATED},               /* MP */
        {HVT_CR0 | 0x40000, EMULATED},           /* AM */
        {HVT_CR0 | 0x40000000, EMULATED},        /* CD */
        {HVT_CR0 | 0x60000000, EMULATED},        /* CD NW */
        {HVT_CR0 | 0x20000000, GUEST_FAULT},     /* NW alone */
        {HVT_CR0 | 1ULL << 32, GUEST_FAULT},     /* reserved */
        {HVT_CR0 & ~0x80000000ULL, UNSUPPORTED}, /* paging off */
        {HVT_CR0 & ~1ULL, GUEST_FAULT},          /* paging without protection */
        {HVT_CR0 & ~0x80000001ULL, UNSUPPORTED}, /* both off */
        {HVT_CR0 & ~0x10000ULL, UNSUPPORTED},    /* WP */
        {HVT_CR0 | 0x8, UNSUPPORTED},            /* TS would raise #NM */
        {HVT_CR0 | 0x4, UNSUPPORTED},            /* EM would, too */
    };
    static const struct written cr4[] = {
        {HVT_CR4, EMULATED},
        {HVT_CR4 | 0x40000, EMULATED},       /* OSXSAVE */
        {HVT_CR4 | 0x300880, EMULATED},      /* SMEP SMAP UMIP PGE */
        {HVT_CR4 | 0x10000, EMULATED},       /* FSGSBASE */
        {HVT_CR4 & ~0x20ULL, GUEST_FAULT},   /* PAE */
        {HVT_CR4 | 0x1000, GUEST_FAULT},     /* LA57 */
        {HVT_CR4 | 0x8000, GUEST_FAULT},     /* reserved */
        {HVT_CR4 | 1ULL << 63, GUEST_FAULT}, /* reserved */
        {HVT_CR4 & ~0x200ULL, UNSUPPORTED},  /* OSFXSR */
        {HVT_CR4 | 0x2000, UNSUPPORTED},     /* VMXE */
        {HVT_CR4 | 0x20000, UNSUPPORTED},    /* PCIDE */
        {HVT_CR4 | 0x400000, UNSUPPORTED},   /* PKE */
        {HVT_CR4 | 0x800000, UNSUPPORTED},   /* CET */
    };
    for (size_t i = 0; i < sizeof cr0 / sizeof cr0[0]; i++) {
        HOLDS(write_answers(ASM("mov %%rbx,%%cr0"), cr0[i]));
        HOLDS(state.cr0 == (cr0[i].answer == EMULATED ? cr0[i].value : HVT_CR0));
    }
    for (size_t i = 0; i < sizeof cr4 / sizeof cr4[0]; i++) {
        HOLDS(write_answers(ASM("mov %%rbx,%%cr4"), cr4[i]));
        HOLDS(state.cr4 == (cr4[i].answer == EMULATED ? cr4[i].value : HVT_CR4));
    }
}

static void test_machine_status_word(void)
{
    struct code code = ASM("lmsw %%bx");
    fresh(code);
    cpu.gpr[GPR_RBX] = 0xfff2; /* MP; LMSW does not change the upper bits, PE stays set */
    HOLDS(emulated(code) && state.cr0 == (HVT_CR0 | 2));
    fresh(code);
    cpu.gpr[GPR_RBX] = 8;
    HOLDS(answers(UNSUPPORTED));
    fresh(code = ASM("lmsw (%%rbx)"));
    cpu.gpr[GPR_RBX] = DATA;
    ram[DATA] = 3;
    HOLDS(emulated(code) && state.cr0 == (HVT_CR0 | 2));
    fresh(code);
    cpu.gpr[GPR_RBX] = M - 1;
    HOLDS(page_faults(M, 0));

    fresh(code = ASM("smsw %%r11"));
    HOLDS(emulated(code) && cpu.gpr[11] == (HVT_CR0 | 0x10));
    fresh(code = ASM("smsw %%r11w"));
    HOLDS(emulated(code) && cpu.gpr[11] == 0xbbbbbbbbbbbb0031);
    fresh(code = ASM("smsw (%%rbx)"));
    cpu.gpr[GPR_RBX] = DATA;
    HOLDS(emulated(code) && get64(DATA) == 0x31);
    fresh(code);
    cpu.gpr[GPR_RBX] = READ_ONLY;
    HOLDS(page_faults(READ_ONLY, 3));
}

static void test_debug_registers(void)
{
    struct code code = ASM("mov %%r8,%%db2");
    fresh(code);
    HOLDS(emulated(code) && state.dr[2] == 0x8888888888888888);
    fresh(code = ASM("mov %%db7,%%rax"));
    HOLDS(emulated(code) && cpu.gpr[GPR_RAX] == 0x400);
    fresh(code = ASM("mov %%db6,%%rax"));
    HOLDS(emulated(code) && cpu.gpr[GPR_RAX] == 0xffff0ff0);
    fresh(code = BYTES(0x0f, 0x21, 0xe0)); /* mov %db4,%rax is DR6 while CR4.DE is clear */
    HOLDS(emulated(code) && cpu.gpr[GPR_RAX] == 0xffff0ff0);
    fresh(code);
    state.cr4 |= 8;
    HOLDS(faults(VECTOR_UD, 0));
    fresh(BYTES(0x44, 0x0f, 0x21, 0xc0)); /* DR8 */
    HOLDS(faults(VECTOR_UD, 0));
    HOLDS(write_answers(ASM("mov %%rbx,%%db7"), (struct written){0, EMULATED}) && state.dr7 == 0x400);
    HOLDS(write_answers(ASM("mov %%rbx,%%db7"), (struct written){1, UNSUPPORTED}));
    HOLDS(write_answers(ASM("mov %%rbx,%%db7"), (struct written){0x80, UNSUPPORTED}));
    HOLDS(write_answers(ASM("mov %%rbx,%%db7"), (struct written){0x2000, UNSUPPORTED}));
    HOLDS(write_answers(ASM("mov %%rbx,%%db7"), (struct written){1ULL << 32, GUEST_FAULT}));
    HOLDS(write_answers(ASM("mov %%rbx,%%db6"), (struct written){1ULL << 63, GUEST_FAULT}));
    HOLDS(write_answers(ASM("mov %%rbx,%%db6"), (struct written){0, EMULATED}) && state.dr6 == 0xffff0ff0);
}

static void set_msr(uint32_t number, uint64_t value)
{
    cpu.gpr[GPR_RCX] = 0xffffffff00000000ULL | number; /* only ECX counts */
    cpu.gpr[GPR_RAX] = 0xffffffff00000000ULL | (uint32_t)value;
    cpu.gpr[GPR_RDX] = 0xffffffff00000000ULL | value >> 32;
}

static bool msr_reads(uint32_t number, uint64_t value)
{
    struct code code = ASM("rdmsr");
    put(CODE, code.bytes, code.length);
    cpu.rip = CODE;
    set_msr(number, 0);
    return emulated(code) && cpu.gpr[GPR_RAX] == (uint32_t)value && cpu.gpr[GPR_RDX] == value >> 32;
}

static void test_msrs(void)
{
    struct code code = ASM("wrmsr");
    static const uint32_t bases[] = {0xc0000100, 0xc0000101, 0xc0000102};
    for (unsigned i = 0; i < 3; i++) {
        fresh(code);
        set_msr(bases[i], HIGH_HALF + 0x123456789);
        HOLDS(emulated(code) && state.bases_changed == (i < 2));
        HOLDS((i == 0   ? state.fs_base
               : i == 1 ? state.gs_base
                        : state.kernel_gs_base) == HIGH_HALF + 0x123456789);
        HOLDS(msr_reads(bases[i], HIGH_HALF + 0x123456789));
        fresh(code);
        set_msr(bases[i], NOT_CANONICAL);
        HOLDS(faults(VECTOR_GP, 0));
    }
    fresh(code);
    HOLDS(msr_reads(0xc0000080, HVT_EFER) && msr_reads(0x1b, 0) && msr_reads(0x277, 0x0007040600070406));
    static const struct written efer[] = {
        {0x500, EMULATED},    {0x501, EMULATED},     {0xd01, EMULATED},    {0x100, EMULATED},
        {0x400, GUEST_FAULT}, {0x1500, GUEST_FAULT}, {0x502, GUEST_FAULT}, {0x500 | 1ULL << 63, GUEST_FAULT},
    };
    for (size_t i = 0; i < sizeof efer / sizeof efer[0]; i++) {
        fresh(code);
        set_msr(0xc0000080, efer[i].value);
        HOLDS(efer[i].answer == EMULATED ? emulated(code) && state.efer == (efer[i].value | 0x400)
                                         : faults(VECTOR_GP, 0));
    }
    static const struct {
        uint32_t number;
        struct written written;
    } others[] = {
        {0x277, {0x0007040600070406, EMULATED}},
        {0x277, {0, GUEST_FAULT}},
        {0x1b, {0, EMULATED}},
        {0x1b, {0xfee00900, GUEST_FAULT}},
        {0x10, {0, GUEST_FAULT}},
        {0xc0000082, {0, GUEST_FAULT}},
        {0x174, {0, GUEST_FAULT}},
        {0xffffffff, {0, GUEST_FAULT}},
    };
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        fresh(code);
        set_msr(others[i].number, others[i].written.value);
        HOLDS(others[i].written.answer == EMULATED ? emulated(code) : faults(VECTOR_GP, 0));
    }
    fresh(code = ASM("rdmsr"));
    set_msr(0xc0000082, 0);
    HOLDS(faults(VECTOR_GP, 0));
    fresh(code);
    set_msr(0x10, 0);
    uint64_t before = __builtin_ia32_rdtsc();
    HOLDS(emulated(code) && (cpu.gpr[GPR_RDX] << 32 | cpu.gpr[GPR_RAX]) - before < 1ULL << 40);
    fresh(ASM("rdpmc"));
    HOLDS(faults(VECTOR_GP, 0));

    fresh(code = ASM("swapgs"));
    state.gs_base = 1;
    state.kernel_gs_base = 2;
    HOLDS(emulated(code) && state.gs_base == 2 && state.kernel_gs_base == 1 && state.bases_changed);
}

static void test_xsetbv(void)
{
    struct code code = ASM("xsetbv");
    static const struct written values[] = {
        {1, EMULATED},
        {3, EMULATED},
        {7, EMULATED},
        {0xe7, EMULATED},
        {0x201, EMULATED},
        {0, GUEST_FAULT},
        {2, GUEST_FAULT},
        {5, GUEST_FAULT},
        {0xe3, GUEST_FAULT},
        {0x27, GUEST_FAULT},
        {0x1f, GUEST_FAULT},
        {1 | 1ULL << 63, GUEST_FAULT},
        {1 | 1ULL << 8, GUEST_FAULT},
    };
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        fresh(code);
        set_msr(0, values[i].value);
        HOLDS(values[i].answer == EMULATED ? emulated(code) && state.xcr0 == values[i].value
                                           : faults(VECTOR_GP, 0));
    }
    for (uint64_t mpx = 0; mpx < 4; mpx++) { /* on a host that has MPX: both halves or none */
        fresh(code);
        state.host_xcr0 = 0x1f;
        set_msr(0, 3 | mpx << 3);
        HOLDS(mpx % 3 == 0 ? emulated(code) : faults(VECTOR_GP, 0));
    }
    fresh(code);
    set_msr(1, 1);
    HOLDS(faults(VECTOR_GP, 0));
}

int main(void)
{
    test_start_state();
    test_control_registers();
    test_control_register_bits();
    test_machine_status_word();
    test_debug_registers();
    test_msrs();
    test_xsetbv();
    return finish();
}
