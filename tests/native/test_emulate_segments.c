/* Segment registers, TR, LDTR and far transfers: good and bad selectors, descriptors and stacks. */
#include "ring0_guest.h"

static void test_task_register(void)
{
    struct code code = ASM("ltr %%bx");
    fresh(code);
    state.tr = (struct system_segment){0};
    cpu.gpr[GPR_RBX] = SEL_TSS;
    HOLDS(emulated(code) && state.tr.selector == SEL_TSS && state.tr.base == TSS && state.tr.limit == 0x67);
    HOLDS(ram[GDT + SEL_TSS + 5] == 0x8b); /* busy now */
    cpu.rip = CODE;
    HOLDS(faults(VECTOR_GP, SEL_TSS));

    static const struct {
        uint16_t selector;
        enum vector vector;
        uint32_t error;
    } wrong[] = {
        {0, VECTOR_GP, 0},
        {3, VECTOR_GP, 0},
        {SEL_BUSY, VECTOR_GP, SEL_BUSY},
        {SEL_ABSENT_TSS, VECTOR_NP, SEL_ABSENT_TSS},
        {SEL_DATA, VECTOR_GP, SEL_DATA},
        {SEL_LDT | 3, VECTOR_GP, SEL_LDT},
        {SEL_BAD_TSS, VECTOR_GP, SEL_BAD_TSS},
        {GDT_BYTES - 8, VECTOR_GP, GDT_BYTES - 8}, /* its second half is past the limit */
        {0xfff8, VECTOR_GP, 0xfff8},
        {SEL_TSS | 4, VECTOR_GP, SEL_TSS | 4}, /* a TSS must be in the GDT */
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        fresh(code);
        cpu.gpr[GPR_RBX] = wrong[i].selector;
        HOLDS(faults(wrong[i].vector, wrong[i].error));
    }
    fresh(code);
    put64(GDT + SEL_TSS + 8, 9ULL << 40); /* the upper half looks like a descriptor */
    cpu.gpr[GPR_RBX] = SEL_TSS;
    HOLDS(faults(VECTOR_GP, SEL_TSS));
    fresh(code);
    cpu.gpr[GPR_RBX] = SEL_TSS;
    state.gdtr.base = M - 0x40; /* the descriptor crosses the end of memory */
    state.gdtr.limit = 0xffff;
    HOLDS(page_faults(M, 0));
    fresh(code);
    cpu.gpr[GPR_RBX] = SEL_TSS;
    memcpy(ram + READ_ONLY, ram + GDT, GDT_BYTES); /* the descriptor cannot be marked busy */
    state.gdtr.base = READ_ONLY;
    HOLDS(page_faults(READ_ONLY + SEL_TSS + 5, 3));
    fresh(code);
    system_state_init(&state, HOST_XCR0); /* the first GDT is where the guest has no pages */
    cpu.gpr[GPR_RBX] = SEL_CODE;
    HOLDS(page_faults(HVT_GDT_GPA + 8, 0));

    fresh(code = ASM("ltr 2(%%rbx)"));
    cpu.gpr[GPR_RBX] = DATA;
    ram[DATA + 2] = SEL_TSS;
    HOLDS(emulated(code) && state.tr.selector == SEL_TSS);
    fresh(code = ASM("str %%r9d"));
    HOLDS(emulated(code) && cpu.gpr[9] == SEL_TSS);
    fresh(code = ASM("str (%%rbx)"));
    cpu.gpr[GPR_RBX] = DATA;
    put64(DATA, UINT64_MAX);
    HOLDS(emulated(code) && get64(DATA) == (0xffffffffffff0000 | SEL_TSS));
}

static void test_ldt(void)
{
    struct code code = ASM("lldt %%bx");
    fresh(code);
    cpu.gpr[GPR_RBX] = 0;
    HOLDS(emulated(code) && state.ldtr.limit == 0);
    fresh(code);
    cpu.gpr[GPR_RBX] = SEL_TSS;
    HOLDS(faults(VECTOR_GP, SEL_TSS));
    fresh(ASM("mov %%ebx,%%fs"));
    cpu.gpr[GPR_RBX] = LDT_FS; /* there is no LDT yet */
    HOLDS(faults(VECTOR_GP, LDT_FS));
    fresh(code);
    cpu.gpr[GPR_RBX] = SEL_LDT;
    HOLDS(emulated(code) && state.ldtr.base == LDT && state.ldtr.limit == 0x0f);
    put(CODE, ASM("mov %%ebx,%%fs").bytes, 2);
    cpu.rip = CODE;
    cpu.gpr[GPR_RBX] = LDT_FS;
    HOLDS(run() == EMULATED && state.fs_base == 0xabcdef && state.selector[SEG_FS] == LDT_FS);
    cpu.rip = CODE;
    cpu.gpr[GPR_RBX] = 0x14; /* past the limit */
    HOLDS(faults(VECTOR_GP, 0x14));
    fresh(code = ASM("sldt %%eax"));
    state.ldtr.selector = SEL_LDT;
    HOLDS(emulated(code) && cpu.gpr[GPR_RAX] == SEL_LDT);
    fresh(code = ASM("lldt (%%rbx)"));
    cpu.gpr[GPR_RBX] = DATA;
    ram[DATA] = SEL_LDT;
    HOLDS(emulated(code) && state.ldtr.base == LDT);
}

static void test_segment_loads(void)
{
    struct code code = ASM("mov %%ebx,%%fs");
    fresh(code);
    cpu.gpr[GPR_RBX] = 0xffff0000 | SEL_FS;
    HOLDS(emulated(code) && state.fs_base == 0x12345678 && state.bases_changed &&
          state.selector[SEG_FS] == SEL_FS);
    HOLDS(ram[GDT + SEL_FS + 5] == 0x93); /* accessed */
    fresh(code);
    state.fs_base = 77;
    cpu.gpr[GPR_RBX] = 0;
    HOLDS(emulated(code) && state.fs_base == 0 && state.bases_changed && state.selector[SEG_FS] == 0);
    fresh(code = ASM("mov (%%rbx),%%gs"));
    cpu.gpr[GPR_RBX] = DATA;
    ram[DATA] = SEL_FS;
    HOLDS(emulated(code) && state.gs_base == 0x12345678 && state.fs_base == 0);
    fresh(code = ASM("mov %%r11d,%%ds"));
    cpu.gpr[11] = SEL_DATA;
    state.selector[SEG_DS] = 0;
    HOLDS(emulated(code) && state.selector[SEG_DS] == SEL_DATA && !state.bases_changed);
    fresh(code = ASM("mov %%ebx,%%es"));
    cpu.gpr[GPR_RBX] = SEL_USER_DATA | 3;
    HOLDS(emulated(code) && state.selector[SEG_ES] == (SEL_USER_DATA | 3));
    fresh(code = ASM("mov %%ebx,%%ss"));
    cpu.gpr[GPR_RBX] = SEL_DATA;
    HOLDS(emulated(code) && state.selector[SEG_SS] == SEL_DATA);
    fresh(code);
    cpu.gpr[GPR_RBX] = 0; /* null is a stack segment in 64-bit mode */
    HOLDS(emulated(code) && state.selector[SEG_SS] == 0);
    fresh(code);
    cpu.gpr[GPR_RBX] = 0x2b; /* the host's selector, as `mov %ss,%ebx` reads it */
    HOLDS(emulated(code) && state.selector[SEG_SS] == SEL_DATA);

    static const struct {
        uint8_t segment;
        uint16_t selector;
        enum vector vector;
        uint32_t error;
    } wrong[] = {
        {SEG_SS, 3, VECTOR_GP, 0},
        {SEG_SS, SEL_DATA | 1, VECTOR_GP, SEL_DATA},
        {SEG_SS, SEL_USER_DATA, VECTOR_GP, SEL_USER_DATA},
        {SEG_SS, SEL_READ_ONLY, VECTOR_GP, SEL_READ_ONLY},
        {SEG_SS, SEL_CODE, VECTOR_GP, SEL_CODE},
        {SEG_SS, SEL_ABSENT_DATA, VECTOR_SS, SEL_ABSENT_DATA},
        {SEG_SS, GDT_BYTES, VECTOR_GP, GDT_BYTES},
        {SEG_DS, SEL_DATA | 1, VECTOR_GP, SEL_DATA},
        {SEG_DS, SEL_EXECUTE_ONLY, VECTOR_GP, SEL_EXECUTE_ONLY},
        {SEG_DS, SEL_ABSENT_DATA, VECTOR_NP, SEL_ABSENT_DATA},
        {SEG_FS, SEL_TSS, VECTOR_GP, SEL_TSS},
        {SEG_GS, 0xfffb, VECTOR_GP, 0xfff8},
        {SEG_CS, SEL_CODE, VECTOR_UD, 0},
        {6, SEL_DATA, VECTOR_UD, 0},
        {7, SEL_DATA, VECTOR_UD, 0},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        fresh(BYTES(0x8e, (uint8_t)(0xc3 | wrong[i].segment << 3))); /* mov %ebx,%sreg */
        cpu.gpr[GPR_RBX] = wrong[i].selector;
        HOLDS(faults(wrong[i].vector, wrong[i].error));
    }
    fresh(code = ASM("mov %%ebx,%%ds"));
    state.gdtr.limit = SEL_DATA + 6; /* the descriptor's last byte is past the limit */
    cpu.gpr[GPR_RBX] = SEL_DATA;
    HOLDS(faults(VECTOR_GP, SEL_DATA));
    state.gdtr.limit++;
    HOLDS(emulated(code));
    fresh(code);
    state.gdtr.base = NOT_CANONICAL - 0x10;
    cpu.gpr[GPR_RBX] = SEL_DATA;
    HOLDS(faults(VECTOR_GP, 0));
    fresh(code);
    state.gdtr.base = UINT64_MAX - 0xf; /* wraps to zero, where there is no page */
    cpu.gpr[GPR_RBX] = SEL_DATA;
    HOLDS(page_faults(0, 0));
}

static void test_pops_and_far_pointers(void)
{
    struct code code = ASM("popq %%fs");
    fresh(code);
    put64(STACK, 0xffffffffffff0000 | SEL_FS);
    HOLDS(emulated(code) && state.fs_base == 0x12345678 && cpu.gpr[GPR_RSP] == STACK + 8);
    fresh(code = ASM("popw %%gs"));
    put64(STACK, 0xffffffffffff0000 | SEL_FS);
    HOLDS(emulated(code) && state.gs_base == 0x12345678 && cpu.gpr[GPR_RSP] == STACK + 2);
    fresh(code = ASM("popq %%fs"));
    cpu.gpr[GPR_RSP] = M - 4;
    HOLDS(page_faults(M, 0));
    fresh(code);
    cpu.gpr[GPR_RSP] = NOT_CANONICAL;
    HOLDS(faults(VECTOR_SS, 0));
    fresh(code);
    put64(STACK, SEL_ABSENT_DATA);
    HOLDS(faults(VECTOR_NP, SEL_ABSENT_DATA));

    fresh(code = ASM("lssl (%%rbx),%%esp"));
    cpu.gpr[GPR_RBX] = DATA;
    put_pointer(DATA, 0xfffffff0, 4, SEL_DATA);
    HOLDS(emulated(code) && cpu.gpr[GPR_RSP] == 0xfffffff0 && state.selector[SEG_SS] == SEL_DATA);
    fresh(code = BYTES(0x4c, 0x0f, 0xb4, 0x33)); /* lfs (%rbx),%r14 */
    cpu.gpr[GPR_RBX] = DATA;
    put_pointer(DATA, 0x123456789abcdef0, 8, SEL_FS);
    HOLDS(emulated(code) && cpu.gpr[14] == 0x123456789abcdef0 && state.fs_base == 0x12345678);
    fresh(code = ASM("lgsw (%%rbx),%%cx"));
    cpu.gpr[GPR_RBX] = DATA;
    put_pointer(DATA, 0xabcd, 2, SEL_FS);
    HOLDS(emulated(code) && cpu.gpr[GPR_RCX] == 0x111111111111abcd && state.gs_base == 0x12345678);
    fresh(code);
    cpu.gpr[GPR_RBX] = DATA;
    put_pointer(DATA, 0xabcd, 2, SEL_TSS);
    HOLDS(faults(VECTOR_GP, SEL_TSS));
    fresh(code);
    cpu.gpr[GPR_RBX] = M - 3;
    HOLDS(page_faults(M, 0));
}

static void put_stack(unsigned slot_bytes, const uint64_t *slots, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        put(cpu.gpr[GPR_RSP] + i * slot_bytes, &slots[i], slot_bytes);
}

static void far_frame(struct code code, unsigned slot_bytes, uint64_t rip, uint64_t selector)
{
    fresh(code);
    put_stack(slot_bytes, (const uint64_t[]){rip, selector}, 2);
}

static void test_far_returns(void)
{
    struct code code = ASM("lretq");
    far_frame(code, 8, 0x123456, SEL_CODE);
    state.selector[SEG_CS] = 0;
    HOLDS(run() == EMULATED && cpu.rip == 0x123456 && cpu.gpr[GPR_RSP] == STACK + 16 &&
          state.selector[SEG_CS] == SEL_CODE);
    far_frame(code, 8, HIGH_HALF, 0x33); /* the host's CS, as `push %cs` could have read it */
    HOLDS(run() == EMULATED && cpu.rip == HIGH_HALF && state.selector[SEG_CS] == SEL_CODE);
    far_frame(ASM("lretl"), 4, 0xfffffff0, SEL_CODE);
    HOLDS(run() == EMULATED && cpu.rip == 0xfffffff0 && cpu.gpr[GPR_RSP] == STACK + 8);
    far_frame(ASM("lretq $0x1238"), 8, 0x123456, SEL_CODE);
    HOLDS(run() == EMULATED && cpu.rip == 0x123456 && cpu.gpr[GPR_RSP] == STACK + 16 + 0x1238);

    static const struct {
        uint64_t rip;
        uint16_t selector;
        enum vector vector;
        uint32_t error;
    } wrong[] = {
        {CODE, 0, VECTOR_GP, 0},
        {CODE, 3, VECTOR_GP, 0},
        {CODE, SEL_DATA, VECTOR_GP, SEL_DATA},
        {CODE, SEL_TSS, VECTOR_GP, SEL_TSS},
        {CODE, SEL_USER_CODE, VECTOR_GP, SEL_USER_CODE},
        {CODE, GDT_BYTES, VECTOR_GP, GDT_BYTES},
        {CODE, SEL_ABSENT_CODE, VECTOR_NP, SEL_ABSENT_CODE},
        {CODE, SEL_CODE_L_AND_D, VECTOR_GP, SEL_CODE_L_AND_D},
        {NOT_CANONICAL, SEL_CODE, VECTOR_GP, 0},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        far_frame(code, 8, wrong[i].rip, wrong[i].selector);
        HOLDS(faults(wrong[i].vector, wrong[i].error));
    }
    far_frame(code, 8, CODE, SEL_CODE32);
    HOLDS(answers(UNSUPPORTED));
    far_frame(code, 8, CODE, SEL_CODE | 3); /* to user mode */
    HOLDS(answers(UNSUPPORTED));
    fresh(code);
    cpu.gpr[GPR_RSP] = M - 8;
    HOLDS(page_faults(M, 0));
    fresh(code);
    cpu.gpr[GPR_RSP] = UINT64_MAX - 7;
    HOLDS(page_faults(UINT64_MAX - 7, 0));
    fresh(code);
    cpu.gpr[GPR_RSP] = NOT_CANONICAL;
    HOLDS(faults(VECTOR_SS, 0));
}

static void test_far_branches(void)
{
    fresh(ASM(".byte 0x48; ljmp *(%%rbx)"));
    cpu.gpr[GPR_RBX] = DATA;
    put_pointer(DATA, HIGH_HALF + 5, 8, SEL_CODE);
    HOLDS(run() == EMULATED && cpu.rip == HIGH_HALF + 5 && cpu.gpr[GPR_RSP] == STACK);
    fresh(ASM("ljmpl *0x100(%%rip)"));
    put_pointer(CODE + 6 + 0x100, 0x89abcdef, 4, SEL_CODE);
    HOLDS(run() == EMULATED && cpu.rip == 0x89abcdef);

    struct code code = ASM(".byte 0x48; lcall *(%%rbx)");
    fresh(code);
    cpu.gpr[GPR_RBX] = DATA;
    put_pointer(DATA, 0x123456, 8, SEL_CODE);
    HOLDS(run() == EMULATED && cpu.rip == 0x123456 && cpu.gpr[GPR_RSP] == STACK - 16 &&
          get64(STACK - 16) == CODE + code.length && get64(STACK - 8) == SEL_CODE);
    fresh(code = ASM("lcall *(%%rbx)"));
    cpu.gpr[GPR_RBX] = DATA;
    put_pointer(DATA, 0x123456, 4, SEL_CODE);
    HOLDS(run() == EMULATED && cpu.rip == 0x123456 && cpu.gpr[GPR_RSP] == STACK - 8 &&
          get64(STACK - 8) == ((uint64_t)SEL_CODE << 32 | (CODE + code.length)));
    fresh(code);
    cpu.gpr[GPR_RBX] = DATA;
    put_pointer(DATA, 0x123456, 4, SEL_CODE);
    cpu.gpr[GPR_RSP] = READ_ONLY + 4;
    HOLDS(page_faults(READ_ONLY, 3));
    fresh(code);
    cpu.gpr[GPR_RBX] = DATA;
    put_pointer(DATA, 0x123456, 4, 0);
    HOLDS(faults(VECTOR_GP, 0));
    fresh(code);
    cpu.gpr[GPR_RBX] = M - 5;
    HOLDS(page_faults(M, 0));
}

static void iret_frame(struct code code, unsigned slot_bytes, const uint64_t *slots)
{
    fresh(code);
    put_stack(slot_bytes, slots, 5);
}

static void test_interrupt_return(void)
{
    struct code code = ASM("iretq");
    iret_frame(code, 8, (const uint64_t[]){0x123456, SEL_CODE, 0x202 | 0x8d5, 0xabcdef, SEL_DATA});
    HOLDS(run() == EMULATED && cpu.rip == 0x123456 && cpu.gpr[GPR_RSP] == 0xabcdef);
    HOLDS(state.interrupts && cpu.rflags == (0x202 | 0x8d5));
    iret_frame(code, 8, (const uint64_t[]){0x123456, 0x33, UINT64_MAX & ~RFLAGS_IF, 1, 0x2b});
    state.interrupts = true;
    HOLDS(run() == EMULATED && !state.interrupts && state.selector[SEG_CS] == SEL_CODE &&
          state.selector[SEG_SS] == SEL_DATA);
    HOLDS(cpu.rflags == 0x214fd7); /* no AC, IOPL, VM, VIF, VIP; IF is that of ring 3 */
    iret_frame(ASM("iretl"), 4, (const uint64_t[]){0x123456, SEL_CODE, 0x2, 0xfffffff0, 0});
    HOLDS(run() == EMULATED && cpu.rip == 0x123456 && cpu.gpr[GPR_RSP] == 0xfffffff0 &&
          state.selector[SEG_SS] == 0);

    static const struct {
        uint64_t slots[5];
        enum vector vector;
        uint32_t error;
    } wrong[] = {
        {{NOT_CANONICAL, SEL_CODE, 2, STACK, SEL_DATA}, VECTOR_GP, 0},
        {{CODE, 0, 2, STACK, SEL_DATA}, VECTOR_GP, 0},
        {{CODE, SEL_DATA, 2, STACK, SEL_DATA}, VECTOR_GP, SEL_DATA},
        {{CODE, SEL_ABSENT_CODE, 2, STACK, SEL_DATA}, VECTOR_NP, SEL_ABSENT_CODE},
        {{CODE, SEL_CODE, 2, STACK, SEL_CODE}, VECTOR_GP, SEL_CODE},
        {{CODE, SEL_CODE, 2, STACK, 3}, VECTOR_GP, 0},
        {{CODE, SEL_CODE, 2, STACK, SEL_ABSENT_DATA}, VECTOR_SS, SEL_ABSENT_DATA},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        iret_frame(code, 8, wrong[i].slots);
        HOLDS(faults(wrong[i].vector, wrong[i].error));
    }
    iret_frame(code, 8, (const uint64_t[]){CODE, SEL_CODE, 2, STACK, SEL_DATA});
    cpu.rflags |= RFLAGS_NT;
    HOLDS(faults(VECTOR_GP, 0));
    iret_frame(code, 8, (const uint64_t[]){CODE, SEL_CODE | 3, 2, STACK, SEL_DATA | 3});
    HOLDS(answers(UNSUPPORTED));
    fresh(code);
    cpu.gpr[GPR_RSP] = M - 39;
    HOLDS(page_faults(M, 0));
}

int main(void)
{
    test_task_register();
    test_ldt();
    test_segment_loads();
    test_pops_and_far_pointers();
    test_far_returns();
    test_far_branches();
    test_interrupt_return();
    return finish();
}
