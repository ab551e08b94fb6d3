/*
 * Decodes one instruction in 64-bit mode: one that only ring 0 may execute, or one that faults in
 * ring 3 because a selector belongs to the guest.
 *
 * The rule: a pure function of at most 15 bytes. It knows the form of only those instructions that
 * emulate.c knows. It does not decide what an opcode means.
 */
#ifndef TENDER_SANDBOX_DECODE_H
#define TENDER_SANDBOX_DECODE_H

#include "cpu.h"

#define INSTRUCTION_MAX 15u
#define NO_REGISTER     0xffu

/* Two-byte opcodes are 0x0fXX, three-byte ones 0x0f38XX. */
struct instruction {
    uint32_t opcode;
    uint8_t length;
    bool lock;
    bool repeat; /* F2 or F3 */
    bool operand16;
    bool address32;
    bool wide;       /* REX.W */
    uint8_t segment; /* SEG_FS, SEG_GS or NO_REGISTER: 64-bit mode ignores the other overrides */
    uint8_t mod;     /* 3: `rm` is a register */
    uint8_t reg;     /* the field with REX.R added; `digit` is the field without it */
    uint8_t digit;
    uint8_t rm; /* a register, with REX.B added; its low three bits are the encoded field */
    uint8_t base, index;
    uint8_t scale; /* shift */
    bool rip_relative;
    int32_t displacement;
    uint16_t immediate;
};

enum decoding {
    DECODED,
    DECODED_OTHER, /* an instruction that emulate.c does not know */
    DECODE_MORE,   /* incomplete: `available` bytes are not enough */
    DECODE_LONG,   /* more than 15 bytes: #GP(0) */
};

enum decoding decode(const uint8_t *bytes, uint32_t available, struct instruction *in);

/* Returns the operand size: 2, 4 or 8. */
uint32_t operand_bytes(const struct instruction *in);

/* Returns the linear address of the memory operand (mod is not 3), and whether its fault is #SS. */
uint64_t operand_address(const struct instruction *in, const struct cpu *cpu,
                         const struct system_state *state, bool *through_stack);

#endif
