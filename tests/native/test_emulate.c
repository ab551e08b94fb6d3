/* Decoding, system tables, ports and flags: the instructions of emulate.c, by their bytes. */
#include "ring0_guest.h"

static void test_tables(void)
{
    struct code code = ASM("lgdt (%%rbx)");
    fresh(code);
    cpu.gpr[GPR_RBX] = DATA;
    put_table(DATA, 0x37, HIGH_HALF);
    HOLDS(emulated(code) && state.gdtr.base == HIGH_HALF && state.gdtr.limit == 0x37);
    HOLDS(state.idtr.base == IDT);

    fresh(code = ASM("lidt -0x10(%%r12,%%r13,8)"));
    cpu.gpr[12] = DATA;
    cpu.gpr[13] = 4;
    put_table(DATA + 0x10, 0x2ff, IDT + 0x100);
    HOLDS(emulated(code) && state.idtr.base == IDT + 0x100 && state.idtr.limit == 0x2ff);

    fresh(code = ASM("lidt 0x12345(%%rip)"));
    put_table(CODE + code.length + 0x12345, 0x100, 0x1234);
    HOLDS(code.length == 7 && emulated(code) && state.idtr.base == 0x1234 && state.idtr.limit == 0x100);

    fresh(code = ASM("lgdt (%%rbx)"));
    cpu.gpr[GPR_RBX] = DATA;
    put_table(DATA, 0x37, NOT_CANONICAL);
    HOLDS(faults(VECTOR_GP, 0));

    fresh(code = ASM("sgdt 8(%%rsp)"));
    HOLDS(emulated(code) && get16(STACK + 8) == GDT_BYTES - 1 && get64(STACK + 10) == GDT);
    fresh(code = ASM("sidt (%%r15)"));
    cpu.gpr[15] = DATA;
    HOLDS(emulated(code) && get16(DATA) == 511 && get64(DATA + 2) == IDT);
}

static void test_addressing(void)
{
    struct code code = ASM("sidt (,%%rcx,4)");
    fresh(code);
    cpu.gpr[GPR_RCX] = DATA / 4;
    HOLDS(emulated(code) && get64(DATA + 2) == IDT);
    fresh(code = ASM("sidt 0x110040")); /* an absolute address: SIB without base and index */
    HOLDS(emulated(code) && get64(0x110042) == IDT);
    fresh(code = ASM("sidt -8(%%rbp)"));
    cpu.gpr[GPR_RBP] = DATA + 8;
    HOLDS(emulated(code) && get64(DATA + 2) == IDT);
    /* This encoding means "no base" if there is no displacement. */
    fresh(code = ASM("sidt 8(%%rbp,%%rcx,2)"));
    cpu.gpr[GPR_RBP] = DATA;
    cpu.gpr[GPR_RCX] = 0x10;
    HOLDS(emulated(code) && get64(DATA + 0x2a) == IDT);
    fresh(code = ASM("sidt (%%r13)"));
    cpu.gpr[13] = DATA;
    HOLDS(emulated(code) && get64(DATA + 2) == IDT);
    fresh(code = ASM("sidt 0x1000(%%rax,%%r12,1)"));
    cpu.gpr[GPR_RAX] = DATA - 0x2000;
    cpu.gpr[12] = 0x1000;
    HOLDS(emulated(code) && get64(DATA + 2) == IDT);
    fresh(code = ASM("sidt 0x110010(%%ebx)")); /* 32-bit address: the upper half is ignored, the sum wraps */
    cpu.gpr[GPR_RBX] = 0xdeadbeeffffffff0ULL;
    HOLDS(emulated(code) && get64(DATA + 2) == IDT);
    fresh(code = ASM("sidt %%fs:0x10(%%rbx)"));
    state.fs_base = DATA;
    cpu.gpr[GPR_RBX] = 0x20;
    HOLDS(emulated(code) && get64(DATA + 0x32) == IDT);
    fresh(code = ASM("sidt %%gs:(%%rbp)"));
    state.gs_base = DATA + 0x1000 - 0x2000;
    cpu.gpr[GPR_RBP] = 0x1800;
    HOLDS(emulated(code) && get64(DATA + 0x802) == IDT);
    fresh(code =
              BYTES(0x2e, 0x3e, 0x26, 0x36, 0x66, 0xf2, 0x0f, 0x01, 0x0b)); /* prefixes without an effect */
    cpu.gpr[GPR_RBX] = DATA;
    HOLDS(emulated(code) && get64(DATA + 2) == IDT);
    fresh(code = BYTES(0x41, 0x66, 0x0f, 0x01, 0x0b)); /* a REX before another prefix has no effect */
    cpu.gpr[GPR_RBX] = DATA;
    HOLDS(emulated(code) && get64(DATA + 2) == IDT);
}

static void test_hostile_operands(void)
{
    static const struct {
        uint64_t address;
        uint64_t cr2;
        uint32_t error;
    } reads[] = {
        {M, M, 0},
        {M - 9, M, 0}, /* the first missing byte is at M */
        {UINT64_MAX, UINT64_MAX, 0},
        {UINT64_MAX - 8, UINT64_MAX - 8, 0},
        {HIGH_HALF, HIGH_HALF, 0},
        {0x7ffffffffff6, 0x7ffffffffff6, 0},
        {0x400000000, 0x400000000, 0},
        {0, 0, 0},
        {0xffff - 9, 0xffff - 9, 0},
        {0xffff, 0xffff, 0},
    };
    struct code code = ASM("lgdt (%%rbx)");
    for (size_t i = 0; i < sizeof reads / sizeof reads[0]; i++) {
        fresh(code);
        cpu.gpr[GPR_RBX] = reads[i].address;
        HOLDS(page_faults(reads[i].cr2, reads[i].error));
    }
    static const uint64_t strange[] = {NOT_CANONICAL, 0x7fffffffffff, HIGH_HALF - 1, 1ULL << 63};
    for (size_t i = 0; i < sizeof strange / sizeof strange[0]; i++) {
        fresh(code = ASM("lgdt (%%rbx)"));
        cpu.gpr[GPR_RBX] = strange[i];
        HOLDS(faults(VECTOR_GP, 0));
        fresh(code = ASM("lgdt (%%rbp)"));
        cpu.gpr[GPR_RBP] = strange[i];
        HOLDS(faults(VECTOR_SS, 0));
        fresh(code = ASM("lgdt (%%rsp)"));
        cpu.gpr[GPR_RSP] = strange[i];
        HOLDS(faults(VECTOR_SS, 0));
        fresh(code = ASM("lgdt %%fs:(%%rsp)"));
        cpu.gpr[GPR_RSP] = strange[i];
        HOLDS(faults(VECTOR_GP, 0));
    }
    fresh(code = ASM("lgdt (%%rbx)"));
    cpu.gpr[GPR_RBX] = M - 10; /* the last possible address */
    HOLDS(emulated(code));
    fresh(code = ASM("sgdt (%%rbx)"));
    cpu.gpr[GPR_RBX] = M - 9;
    HOLDS(page_faults(M, 2) && ram[M - 1] == 0 && ram[M - 9] == 0);
    fresh(code);
    cpu.gpr[GPR_RBX] = READ_ONLY;
    HOLDS(page_faults(READ_ONLY, 3));
    fresh(code);
    cpu.gpr[GPR_RBX] = READ_ONLY - 4;
    HOLDS(page_faults(READ_ONLY, 3) && get16(READ_ONLY - 4) == 0);
    fresh(code);
    cpu.gpr[GPR_RBX] = TEXT;
    HOLDS(page_faults(TEXT, 3));
    fresh(code);
    cpu.gpr[GPR_RBX] = HVT_BOOT_INFO_GPA; /* readable, not writable */
    HOLDS(page_faults(HVT_BOOT_INFO_GPA, 3));
    fresh(code);
    cpu.gpr[GPR_RBX] = 0x1000;
    HOLDS(page_faults(0x1000, 2));
    fresh(code = ASM("lgdt 0x7fffffff(%%rip)"));
    HOLDS(page_faults(CODE + 7 + 0x7fffffffULL, 0));
    fresh(code = ASM("lgdt -0x80000000(%%rip)"));
    HOLDS(page_faults(CODE + 7 - 0x80000000ULL, 0));
}

static void test_fetch(void)
{
    uint8_t prefixes[15];
    memset(prefixes, 0x66, sizeof prefixes);
    fresh((struct code){prefixes, sizeof prefixes});
    HOLDS(faults(VECTOR_GP, 0) && out.length == 0);
    prefixes[14] = 0xf4;
    fresh((struct code){prefixes, sizeof prefixes}); /* 15 bytes are allowed */
    HOLDS(run() == HALTED && out.length == 15 && cpu.rip == CODE + 15);
    /* An lgdt whose displacement is past the 15th byte. */
    prefixes[12] = 0x0f, prefixes[13] = 0x01, prefixes[14] = 0x15;
    fresh((struct code){prefixes, sizeof prefixes});
    HOLDS(faults(VECTOR_GP, 0));
    memset(prefixes, 0x48, sizeof prefixes);
    fresh((struct code){prefixes, sizeof prefixes});
    HOLDS(faults(VECTOR_GP, 0));

    for (uint32_t kept = 1; kept < 7; kept++) { /* lgdt disp32(%rip), cut by the end of memory */
        fresh(BYTES(0));
        put(M - kept, (const uint8_t[]){0x0f, 0x01, 0x15, 0, 0, 0, 0}, kept);
        cpu.rip = M - kept;
        HOLDS(page_faults(M, 0) && out.length == 0);
    }
    fresh(BYTES(0));
    ram[M - 1] = 0xfa;
    cpu.rip = M - 1;
    HOLDS(run() == EMULATED && cpu.rip == M);
    HOLDS(page_faults(M, 0));
    fresh(BYTES(0));
    ram[M - 1] = 0x66;
    cpu.rip = M - 1;
    HOLDS(page_faults(M, 0));
    fresh(BYTES(0));
    cpu.rip = NOT_CANONICAL;
    HOLDS(faults(VECTOR_GP, 0));
    cpu.rip = UINT64_MAX;
    HOLDS(page_faults(UINT64_MAX, 0));
    cpu.rip = 0xfff0;
    HOLDS(page_faults(0xfff0, 0));
}

static void test_ordinary_instructions(void)
{
    const struct code ordinary[] = {
        {(const uint8_t[]){0x48, 0x8b, 0x03}, 3},       /* mov (%rbx),%rax */
        {(const uint8_t[]){0xc3}, 1},                   /* ret */
        {(const uint8_t[]){0x0f, 0x0b}, 2},             /* ud2 */
        {(const uint8_t[]){0xff, 0x10}, 2},             /* call *(%rax) */
        {(const uint8_t[]){0xff, 0xd8}, 2},             /* ff /3 with a register: #UD */
        {(const uint8_t[]){0xf0, 0xf4}, 2},             /* lock hlt: #UD */
        {(const uint8_t[]){0xf0, 0x0f, 0x01, 0x13}, 4}, /* lock lgdt: #UD */
        {(const uint8_t[]){0x0f, 0xc7, 0x0b}, 3},       /* cmpxchg8b */
        {(const uint8_t[]){0x0f, 0xc7, 0xf0}, 3},       /* rdrand */
        {(const uint8_t[]){0x0f, 0x00, 0xe0}, 3},       /* verr */
        {(const uint8_t[]){0x0f, 0x01, 0xd0}, 3},       /* xgetbv */
        {(const uint8_t[]){0xf3, 0x0f, 0x01, 0xd1}, 4}, /* no xsetbv: #UD */
        {(const uint8_t[]){0x0f, 0xb2, 0xc0}, 3},       /* lss of a register: #UD */
        {(const uint8_t[]){0xce}, 1},                   /* into: #UD in 64-bit mode */
        {(const uint8_t[]){0xc5, 0xf8, 0x77}, 3},       /* vzeroupper */
        {(const uint8_t[]){0x0f, 0x38, 0x00, 0xc0}, 4}, /* pshufb */
    };
    for (size_t i = 0; i < sizeof ordinary / sizeof ordinary[0]; i++) {
        fresh(ordinary[i]);
        HOLDS(answers(NOT_PRIVILEGED) && out.length == 0);
    }
    fresh(BYTES(0));
    ram[M - 1] = 0x48; /* at the end of memory an ordinary instruction needs no bytes after its opcode */
    ram[M - 2] = 0x66;
    cpu.rip = M - 2;
    HOLDS(page_faults(M, 0));
    ram[M - 1] = 0x8b;
    HOLDS(answers(NOT_PRIVILEGED));
}

static void test_unsupported(void)
{
    const struct code privileged[] = {
        ASM("vmcall"),
        ASM("vmmcall"),
        ASM("vmlaunch"),
        ASM("monitor"),
        ASM("mwait"),
        ASM("clac"),
        ASM("stac"),
        ASM("sysretq"),
        ASM("sysexitl"),
        ASM("rsm"),
        ASM("vmxoff"),
        ASM("vmptrld (%%rax)"),
        ASM("xsaves (%%rax)"),
        ASM("clgi"),
        ASM("vmread %%rax,%%rbx"),
        ASM("xrstors (%%rax)"),
        ASM("invpcid (%%rax),%%rbx"),
        ASM("lretw"),
        ASM("iretw"),
        ASM("ljmpw *(%%rax)"),
    };
    for (size_t i = 0; i < sizeof privileged / sizeof privileged[0]; i++) {
        fresh(privileged[i]);
        HOLDS(answers(UNSUPPORTED) && out.length == privileged[i].length &&
              memcmp(out.bytes, privileged[i].bytes, out.length) == 0);
    }
}

static void test_ports(void)
{
    const struct code outs[] = {ASM("out %%eax,(%%dx)"), BYTES(0x48, 0xef), BYTES(0x66, 0x48, 0xef),
                                BYTES(0xf3, 0x2e, 0x67, 0xef)};
    for (size_t i = 0; i < sizeof outs / sizeof outs[0]; i++) {
        fresh(outs[i]);
        cpu.gpr[GPR_RDX] = 0xffff00000502ULL;
        cpu.gpr[GPR_RAX] = 0xffffffff00123456ULL;
        HOLDS(answers(EMULATED_OUT) && out.port == 0x502 && out.value == 0x123456 &&
              out.length == outs[i].length);
    }
    const struct code dx[] = {
        ASM("out %%al,(%%dx)"), ASM("out %%ax,(%%dx)"), ASM("in (%%dx),%%al"), ASM("in (%%dx),%%ax"),
        ASM("in (%%dx),%%eax"), ASM("outsb"),           ASM("rep outsl"),      ASM("insb"),
        ASM("rep insw"),
    };
    for (size_t i = 0; i < sizeof dx / sizeof dx[0]; i++) {
        fresh(dx[i]);
        cpu.gpr[GPR_RDX] = 0x503;
        HOLDS(answers(BAD_PORT) && out.port == 0x503 && out.length == dx[i].length);
    }
    const struct code numbers[] = {ASM("out %%al,$0x80"), ASM("out %%eax,$0x80"), ASM("in $0x80,%%al"),
                                   ASM("in $0x80,%%eax"), ASM("out %%ax,$0x80")};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        fresh(numbers[i]);
        HOLDS(answers(BAD_PORT) && out.port == 0x80 && out.length == numbers[i].length);
    }
}

static void test_flags_and_caches(void)
{
    struct code code = ASM("sti");
    fresh(code);
    HOLDS(emulated(code) && state.interrupts && cpu.rflags == 0x246);
    fresh(code = ASM("cli"));
    state.interrupts = true;
    HOLDS(emulated(code) && !state.interrupts && cpu.rflags == 0x246);
    fresh(ASM("hlt"));
    HOLDS(run() == HALTED && cpu.rip == CODE + 1 && out.length == 1);
    const struct code nothing[] = {ASM("clts"),           ASM("invd"),
                                   ASM("wbinvd"),         BYTES(0xf3, 0x0f, 0x09),
                                   ASM("invlpg (%%rax)"), ASM("invlpg 0x12345678(%%rip)")};
    for (size_t i = 0; i < sizeof nothing / sizeof nothing[0]; i++) {
        fresh(nothing[i]);
        cpu.gpr[GPR_RAX] = NOT_CANONICAL;
        struct system_state before = state;
        HOLDS(emulated(nothing[i]) && memcmp(&state, &before, sizeof state) == 0);
    }
}

int main(void)
{
    test_tables();
    test_addressing();
    test_hostile_operands();
    test_fetch();
    test_ordinary_instructions();
    test_unsupported();
    test_ports();
    test_flags_and_caches();
    return finish();
}
