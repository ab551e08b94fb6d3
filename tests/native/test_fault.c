/* Exceptions through the guest's IDT: frames, stacks, and the steps from a bad gate to #DF and
 * shutdown. */
#include "ring0_guest.h"

static bool deliver(struct exception exception)
{
    return fault_deliver(&memory, &state, &cpu, &exception);
}

struct frame {
    uint64_t rip, cs, rflags, rsp, ss;
};

/* A handler of `vector` was entered with this frame, on a stack that began at `top`. */
static bool entered(unsigned vector, uint64_t top, bool has_error, uint64_t error, struct frame frame)
{
    uint64_t rsp = top - sizeof frame - (has_error ? 8 : 0);
    if (cpu.rip != HANDLER + vector || cpu.gpr[GPR_RSP] != rsp || state.selector[SEG_CS] != SEL_CODE)
        return false;
    if (has_error && get64(rsp) != error)
        return false;
    return memcmp(ram + top - sizeof frame, &frame, sizeof frame) == 0;
}

static const struct frame plain = {CODE, SEL_CODE, 0x10046, STACK, SEL_DATA};

static void test_delivery(void)
{
    fresh(ASM("nop"));
    HOLDS(deliver((struct exception){.vector = VECTOR_UD}) && entered(6, STACK, false, 0, plain));
    HOLDS(cpu.rflags == 0x246);

    fresh(ASM("nop"));
    state.interrupts = true;
    struct frame with_if = plain;
    with_if.rflags |= RFLAGS_IF;
    HOLDS(deliver((struct exception){.vector = VECTOR_GP, .error = 0x1234}) && !state.interrupts &&
          entered(13, STACK, true, 0x1234, with_if));

    fresh(ASM("nop"));
    state.interrupts = true;
    put_gate(VECTOR_GP, 15, 0, true); /* a trap gate */
    HOLDS(deliver((struct exception){.vector = VECTOR_GP}) && state.interrupts);

    fresh(ASM("nop"));
    HOLDS(deliver((struct exception){.vector = VECTOR_PF, .error = 2, .cr2 = 0x400000000}) &&
          state.cr2 == 0x400000000 && entered(14, STACK, true, 2, plain));
    HOLDS(deliver((struct exception){.vector = VECTOR_UD}) && state.cr2 == 0x400000000);

    for (unsigned off = 1; off < 16; off++) {
        fresh(ASM("nop"));
        cpu.gpr[GPR_RSP] = STACK + off;
        struct frame frame = plain;
        frame.rsp = STACK + off;
        HOLDS(deliver((struct exception){.vector = VECTOR_GP, .error = 8}) &&
              entered(13, STACK, true, 8, frame));
    }

    fresh(ASM("nop"));
    put_gate(VECTOR_GP, 14, 1, true);
    put64(TSS + 0x24, IST1 + 15); /* this value is aligned, too */
    HOLDS(deliver((struct exception){.vector = VECTOR_GP, .error = 8}) && entered(13, IST1, true, 8, plain));

    fresh(ASM("nop"));
    cpu.rflags |= RFLAGS_TF | RFLAGS_NT;
    struct frame traced = plain;
    traced.rflags |= RFLAGS_TF | RFLAGS_NT;
    HOLDS(deliver((struct exception){.vector = 1}) && entered(1, STACK, false, 0, traced));
    HOLDS(cpu.rflags == 0x246);

    fresh(ASM("nop"));
    cpu.gpr[GPR_RSP] = READ_ONLY + 0x1000 + 0x30; /* space for exactly one frame */
    struct frame tight = plain;
    tight.rsp = READ_ONLY + 0x1030;
    HOLDS(deliver((struct exception){.vector = VECTOR_GP}) &&
          entered(13, READ_ONLY + 0x1030, true, 0, tight));
    fresh(ASM("nop"));
    cpu.gpr[GPR_RSP] = M;
    struct frame top = plain;
    top.rsp = M;
    HOLDS(deliver((struct exception){.vector = VECTOR_GP}) && entered(13, M, true, 0, top));
}

static void test_software_interrupts(void)
{
    static const struct frame behind = {CODE + 2, SEL_CODE, 0x46, STACK, SEL_DATA};
    fresh(ASM("int $0x0d"));
    HOLDS(answers(GUEST_INTERRUPT) && out.exception.vector == 13 && out.exception.software);
    HOLDS(deliver(out.exception) && entered(13, STACK, false, 0, behind)); /* no error code */
    fresh(ASM("int3"));
    HOLDS(answers(GUEST_INTERRUPT) && out.exception.vector == 3 && deliver(out.exception));
    HOLDS(get64(cpu.gpr[GPR_RSP]) == CODE + 1);

    fresh(ASM(
        "int $0x20")); /* past the IDT: the instruction itself faults, and nothing external was delivered */
    HOLDS(answers(GUEST_INTERRUPT) && deliver(out.exception) &&
          entered(13, STACK, true, 0x20 * 8 + 2, plain));
    fresh(ASM("int $0xff"));
    state.idtr.limit = 0xffff;
    put_gate(0xff, 14, 0, false);
    HOLDS(answers(GUEST_INTERRUPT) && deliver(out.exception) &&
          entered(11, STACK, true, 0xff * 8 + 2, plain));
    /* Vector 8 by an instruction is not a double fault: a failure is #GP and not the end. */
    fresh(ASM("int $8"));
    put_gate(8, 14, 0, false);
    HOLDS(answers(GUEST_INTERRUPT) && deliver(out.exception) && entered(11, STACK, true, 8 * 8 + 2, plain));
    fresh(ASM("int $14"));
    state.cr2 = 5;
    HOLDS(answers(GUEST_INTERRUPT) && deliver(out.exception) && state.cr2 == 5);
}

/* Gates that cannot be used, and how hardware reacts to them. */
static void test_bad_gates(void)
{
    fresh(ASM("nop")); /* benign, then #NP: delivered one after the other */
    put_gate(VECTOR_UD, 14, 0, false);
    HOLDS(deliver((struct exception){.vector = VECTOR_UD}) && entered(11, STACK, true, 6 * 8 + 3, plain));
    fresh(ASM("nop"));
    put_gate(VECTOR_UD, 12, 0, true); /* a call gate */
    HOLDS(deliver((struct exception){.vector = VECTOR_UD}) && entered(13, STACK, true, 6 * 8 + 3, plain));
    fresh(ASM("nop"));
    put_gate(VECTOR_UD, 0x1e, 0, true); /* not a system descriptor */
    HOLDS(deliver((struct exception){.vector = VECTOR_UD}) && entered(13, STACK, true, 6 * 8 + 3, plain));
    fresh(ASM("nop"));
    HOLDS(deliver((struct exception){.vector = 200}) && entered(13, STACK, true, 200 * 8 + 3, plain));

    fresh(ASM("nop")); /* contributory twice: #DF */
    put_gate(VECTOR_GP, 14, 0, false);
    HOLDS(deliver((struct exception){.vector = VECTOR_GP}) && entered(8, STACK, true, 0, plain));
    fresh(ASM("nop")); /* a page fault and a contributory one: #DF */
    put_gate(VECTOR_PF, 14, 0, false);
    HOLDS(deliver((struct exception){.vector = VECTOR_PF, .cr2 = 9}) && state.cr2 == 9 &&
          entered(8, STACK, true, 0, plain));
    fresh(ASM("nop")); /* benign, #NP, #NP again: #DF */
    put_gate(VECTOR_UD, 14, 0, false);
    put_gate(VECTOR_NP, 14, 0, false);
    HOLDS(deliver((struct exception){.vector = VECTOR_UD}) && entered(8, STACK, true, 0, plain));

    fresh(ASM("nop")); /* the longest sequence: #UD, #NP, a page fault on #NP's stack, #DF */
    put_gate(VECTOR_UD, 14, 0, false);
    put_gate(VECTOR_NP, 14, 1, true);
    put_gate(VECTOR_PF, 14, 0, false);
    state.tr.base = M;
    HOLDS(deliver((struct exception){.vector = VECTOR_UD}) && state.cr2 == M + 0x24 &&
          entered(8, STACK, true, 0, plain));
    fresh(ASM("nop")); /* there is no #DF handler either */
    put_gate(VECTOR_GP, 14, 0, false);
    put_gate(VECTOR_DF, 14, 0, false);
    struct cpu before = cpu;
    HOLDS(!deliver((struct exception){.vector = VECTOR_GP}) && memcmp(&cpu, &before, sizeof cpu) == 0);
    fresh(ASM("nop")); /* the state at a guest's start: no IDT at all */
    state.idtr = (struct table_register){0, 0};
    HOLDS(!deliver((struct exception){.vector = VECTOR_UD}));
    fresh(ASM("nop"));
    state.idtr = (struct table_register){0, 0xffff}; /* there is no page at that address */
    HOLDS(!deliver((struct exception){.vector = VECTOR_UD}) && state.cr2 == 8 * 16);
    fresh(ASM("nop"));
    state.idtr.limit = 14 * 16 + 14; /* one byte of the last gate is missing */
    HOLDS(deliver((struct exception){.vector = VECTOR_PF}) && entered(8, STACK, true, 0, plain));
    fresh(ASM("nop"));
    state.idtr.base = M - 8 * 16; /* #UD's gate exists, #GP's gate is past the end */
    memcpy(ram + M - 8 * 16, ram + IDT, 8 * 16);
    HOLDS(deliver((struct exception){.vector = VECTOR_UD}));
    fresh(ASM("nop"));
    state.idtr.base = M - 14 * 16; /* #GP's gate is the last one, #PF's is missing */
    memcpy(ram + M - 14 * 16, ram + IDT, 14 * 16);
    HOLDS(deliver((struct exception){.vector = VECTOR_PF}) && state.cr2 == M &&
          entered(8, STACK, true, 0, plain));
}

static void test_bad_targets(void)
{
    static const struct {
        uint16_t selector;
        unsigned vector;
        uint32_t error;
    } wrong[] = {
        {0, 13, 1},
        {SEL_DATA, 13, SEL_DATA | 1},
        {SEL_ABSENT_CODE, 11, SEL_ABSENT_CODE | 1},
        {SEL_CODE32, 13, SEL_CODE32 | 1},
        {SEL_CODE_L_AND_D, 13, SEL_CODE_L_AND_D | 1},
        {0xfff8, 13, 0xfff9},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        fresh(ASM("nop"));
        put(IDT + 6 * 16 + 2, &wrong[i].selector, 2);
        HOLDS(deliver((struct exception){.vector = VECTOR_UD}) &&
              entered(wrong[i].vector, STACK, true, wrong[i].error, plain));
    }
    fresh(ASM("nop"));
    put64(IDT + 6 * 16 + 8, 0x8000); /* the handler's address is not canonical */
    HOLDS(deliver((struct exception){.vector = VECTOR_UD}) && entered(13, STACK, true, 1, plain));
    fresh(ASM("nop")); /* a null GDT: no code segment for any gate */
    state.gdtr.limit = 0;
    HOLDS(!deliver((struct exception){.vector = VECTOR_UD}));
}

static void test_bad_stacks(void)
{
    static const uint64_t stacks[] = {0,        0x8000,     0x1000,      READ_ONLY + 0x10,
                                      TEXT_END, M + 0x1000, 0x100000000, HIGH_HALF + 0x1000};
    for (size_t i = 0; i < sizeof stacks / sizeof stacks[0]; i++) {
        struct frame frame = plain;
        frame.rsp = stacks[i];
        fresh(ASM("nop")); /* #UD, then #PF on its push, then #PF again: #DF on its own stack */
        cpu.gpr[GPR_RSP] = stacks[i];
        put_gate(VECTOR_DF, 14, 1, true);
        HOLDS(deliver((struct exception){.vector = VECTOR_UD}) && entered(8, IST1, true, 0, frame));
        HOLDS(state.cr2 != 0);
        fresh(ASM("nop")); /* there is no such stack: shutdown */
        cpu.gpr[GPR_RSP] = stacks[i];
        HOLDS(!deliver((struct exception){.vector = VECTOR_UD}));
    }
    struct frame frame = plain;
    fresh(ASM("nop")); /* not canonical: #SS(0), on its own stack */
    frame.rsp = cpu.gpr[GPR_RSP] = NOT_CANONICAL + 0x1000;
    put_gate(VECTOR_SS, 14, 1, true);
    HOLDS(deliver((struct exception){.vector = VECTOR_UD}) && entered(12, IST1, true, 1, frame));
    fresh(ASM("nop")); /* the frame would cross into a page that cannot be written */
    frame.rsp = cpu.gpr[GPR_RSP] = READ_ONLY + 0x1020;
    put_gate(VECTOR_PF, 14, 1, true);
    HOLDS(deliver((struct exception){.vector = VECTOR_UD}) && entered(14, IST1, true, 3, frame) &&
          state.cr2 == READ_ONLY + 0x1020 - 40);

    fresh(ASM("nop")); /* an IST without a TSS: #TS of a null task register */
    state.tr = (struct system_segment){0};
    put_gate(VECTOR_UD, 14, 1, true);
    HOLDS(deliver((struct exception){.vector = VECTOR_UD}) && entered(10, STACK, true, 1, plain));
    fresh(ASM("nop")); /* a TSS that ends before the IST */
    state.tr.limit = 0x24 + 6 * 8 + 6;
    put_gate(VECTOR_UD, 14, 7, true);
    HOLDS(deliver((struct exception){.vector = VECTOR_UD}) && entered(10, STACK, true, SEL_TSS | 1, plain));
    state.tr.limit++;
    fresh(ASM("nop")); /* a TSS outside of memory */
    state.tr.base = M;
    put_gate(VECTOR_UD, 14, 1, true);
    HOLDS(deliver((struct exception){.vector = VECTOR_UD}) && entered(14, STACK, true, 0, plain) &&
          state.cr2 == M + 0x24);
}

static void test_error_code(void)
{
    HOLDS(fault_error_code(&memory, 0x400000000, 0x6) == 2); /* the host's U bit is that of ring 3 */
    HOLDS(fault_error_code(&memory, TEXT, 0x7) == 3);
    HOLDS(fault_error_code(&memory, TEXT, 0x6) == 3);      /* the host had not accessed the page yet */
    HOLDS(fault_error_code(&memory, HIGH_HALF, 0x5) == 0); /* the host hides that the page is missing */
    HOLDS(fault_error_code(&memory, M, 0x14) == 0);        /* no I/D without NX */
    HOLDS(fault_error_code(&memory, 0, 0x6) == 2);
    HOLDS(fault_error_code(&memory, 0xffff, 0x4) == 0 && fault_error_code(&memory, 0x10000, 0x4) == 1);
    HOLDS(fault_error_code(&memory, DATA, UINT64_MAX) == 3); /* no other bits pass */
}

int main(void)
{
    test_delivery();
    test_software_interrupts();
    test_bad_gates();
    test_bad_targets();
    test_bad_stacks();
    test_error_code();
    return finish();
}
