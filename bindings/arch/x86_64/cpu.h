/*
 * The data that the emulator works on: the registers of a signal frame, and shadows of the
 * registers that exist only in ring 0. The guest runs at CPL 3, and the emulator makes it appear to
 * run at CPL 0 in 64-bit mode.
 *
 * The rule: plain data, without pointers and without access to hardware. The caller copies the
 * registers in, and loads the changed ones back.
 */
#ifndef TENDER_SANDBOX_CPU_H
#define TENDER_SANDBOX_CPU_H

#include <stdbool.h>
#include <stdint.h>

/* In the order of their encoding. R8 to R15 follow. */
enum gpr { GPR_RAX, GPR_RCX, GPR_RDX, GPR_RBX, GPR_RSP, GPR_RBP, GPR_RSI, GPR_RDI, GPR_COUNT = 16 };
enum segment { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_COUNT };

#define RFLAGS_FIXED 0x2ULL
#define RFLAGS_TF    0x100ULL
#define RFLAGS_IF    0x200ULL
#define RFLAGS_NT    0x4000ULL
#define RFLAGS_RF    0x10000ULL
#define RFLAGS_VM    0x20000ULL

/* Intel SDM volume 3, table 6-1. */
enum vector {
    VECTOR_DE = 0,
    VECTOR_BP = 3,
    VECTOR_UD = 6,
    VECTOR_DF = 8,
    VECTOR_TS = 10,
    VECTOR_NP = 11,
    VECTOR_SS = 12,
    VECTOR_GP = 13,
    VECTOR_PF = 14,
    VECTOR_AC = 17,
    VECTOR_CP = 21,
};

struct cpu {
    uint64_t gpr[GPR_COUNT];
    uint64_t rip;
    uint64_t rflags; /* the hardware's, where IF is always set in ring 3; system_state has the guest's IF */
};

struct table_register {
    uint64_t base;
    uint16_t limit;
};

/* TR and LDTR. The contract starts with neither. A limit of 0 refuses every use. */
struct system_segment {
    uint16_t selector;
    uint32_t limit;
    uint64_t base;
};

struct system_state {
    struct table_register gdtr, idtr;
    struct system_segment tr, ldtr;
    uint16_t selector[SEG_COUNT]; /* the guest's selectors; the hardware has the host's */
    uint64_t cr0, cr2, cr3, cr4, cr8;
    uint64_t dr[4], dr6, dr7;
    uint64_t efer, xcr0;
    uint64_t host_xcr0; /* the host's XCR0 by XGETBV: the bits that a guest may turn on */
    /* The caller reads the two bases before emulate(), because WRFSBASE and a null selector do not trap. */
    uint64_t fs_base, gs_base;
    uint64_t kernel_gs_base;
    bool bases_changed; /* the caller must load both bases, which are canonical, and clear this flag */
    bool interrupts;    /* the guest's IF */
};

/* An exception or interrupt to deliver through the guest's IDT. */
struct exception {
    uint8_t vector;
    bool software;  /* INT n or INT3: no error code, and the handler returns to the next instruction */
    uint8_t length; /* of that instruction if rip points to it; 0 if rip points after it */
    uint32_t error; /* the error code, if the vector has one */
    uint64_t cr2;   /* #PF only */
};

/* Sets the state that the hvt contract promises at the first instruction. */
void system_state_init(struct system_state *state, uint64_t host_xcr0);

#endif
