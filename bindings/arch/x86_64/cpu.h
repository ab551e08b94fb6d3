/*
 * What the emulator works on: the registers that a signal frame holds, and the shadows of those that only
 * ring 0 has. The guest believes to run at CPL 0 in 64-bit mode and does run at CPL 3.
 *
 * The rule: plain data, no pointer, no hardware behind it. Whoever calls copies registers in, and loads back
 * what changed.
 */
#ifndef TENDER_SANDBOX_CPU_H
#define TENDER_SANDBOX_CPU_H

#include <stdbool.h>
#include <stdint.h>

/* In the order of their encoding; R8 to R15 follow. */
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
    uint64_t rflags; /* the hardware's: IF is always set in ring 3, the guest's own is in system_state */
};

struct table_register {
    uint64_t base;
    uint16_t limit;
};

/* TR and LDTR; the contract starts with neither, and a limit of 0 refuses every use. */
struct system_segment {
    uint16_t selector;
    uint32_t limit;
    uint64_t base;
};

struct system_state {
    struct table_register gdtr, idtr;
    struct system_segment tr, ldtr;
    uint16_t selector[SEG_COUNT]; /* the guest's; the hardware keeps the host's */
    uint64_t cr0, cr2, cr3, cr4, cr8;
    uint64_t dr[4], dr6, dr7;
    uint64_t efer, xcr0;
    uint64_t host_xcr0; /* what the host's XGETBV says: the most that a guest may turn on */
    /* The caller refreshes the two bases before emulate(): WRFSBASE and a null selector do not trap. */
    uint64_t fs_base, gs_base;
    uint64_t kernel_gs_base;
    bool bases_changed; /* the caller loads both into the hardware and clears this; any canonical address */
    bool interrupts;    /* the guest's IF */
};

/* Something to deliver through the guest's IDT. */
struct exception {
    uint8_t vector;
    bool software;  /* INT n or INT3: no error code, and the handler returns behind the instruction */
    uint8_t length; /* of that instruction, if rip is at it and not behind */
    uint32_t error; /* if the vector has one */
    uint64_t cr2;   /* #PF only */
};

/* The state that the hvt contract promises at the first instruction. */
void system_state_init(struct system_state *state, uint64_t host_xcr0);

#endif
