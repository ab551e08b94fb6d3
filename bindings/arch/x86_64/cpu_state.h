/*
 * The state of a guest's processor as plain data. A machine starts from it, and a debugger or a
 * snapshot reads and writes it. It names x86's registers, and knows neither KVM nor the sandbox.
 *
 * The rule: a part that `known` does not name has no content. A machine that starts from such a
 * state sets that part to the processor's values after a reset.
 */
#ifndef TENDER_CPU_STATE_H
#define TENDER_CPU_STATE_H

#include <stdint.h>

#include "cpu.h"

/* <native:types> */

/* The parts of a state. Each can be read or set without the others. */
#define CPU_GENERAL 1
#define CPU_SYSTEM  2
#define CPU_MSRS    4
#define CPU_DEBUG   8
#define CPU_FPU     16
#define CPU_ALL     31

#define CPU_XSAVE_BYTES 4096

struct cpu_general {
    uint64_t gpr[16]; /* rax rcx rdx rbx rsp rbp rsi rdi r8 .. r15 */
    uint64_t rip;
    uint64_t rflags;
};

/* A segment register with its hidden part: Intel SDM volume 3, 3.4.3. */
struct cpu_segment {
    uint64_t base;
    uint32_t limit; /* in bytes, with the granularity applied */
    uint16_t selector;
    uint8_t type, present, dpl, db, s, l, g, avl, unusable;
};

struct cpu_table {
    uint64_t base;
    uint16_t limit;
};

struct cpu_system {
    struct cpu_segment segment[6]; /* es cs ss ds fs gs */
    struct cpu_segment tr, ldtr;
    struct cpu_table gdtr, idtr;
    uint64_t cr0, cr2, cr3, cr4, cr8, efer, apic_base;
};

/* The model-specific registers that a guest may write and that are in no other part. */
struct cpu_msrs {
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t star, lstar, cstar, fmask;
    uint64_t kernel_gs_base;
    uint64_t tsc_aux; /* 0 on a processor without this register */
};

struct cpu_debug {
    uint64_t dr[4], dr6, dr7;
};

struct cpu_fpu {
    uint64_t xcr0;
    uint8_t xsave[4096]; /* the standard form: Intel SDM volume 1, 13.4 */
};

struct cpu_state {
    uint32_t known; /* CPU_... */
    struct cpu_general general;
    struct cpu_system system;
    struct cpu_msrs msrs;
    struct cpu_debug debug;
    struct cpu_fpu fpu; /* last, so that a caller that does not need it does not touch its pages */
};

/* </native:types> */

_Static_assert(sizeof((struct cpu_general *)0)->gpr / sizeof(uint64_t) == GPR_COUNT, "enum gpr is its index");
_Static_assert(sizeof((struct cpu_system *)0)->segment / sizeof(struct cpu_segment) == SEG_COUNT,
               "enum segment is its index");
_Static_assert(sizeof((struct cpu_fpu *)0)->xsave == CPU_XSAVE_BYTES, "one number");

#endif
