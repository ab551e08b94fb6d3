/*
 * The instructions that a ring-0 guest executes and ring 3 may not, done on a copy of its registers.
 *
 * Called when the instruction at cpu->rip raised #GP or #UD. What belongs to the guest alone is done here;
 * what concerns anybody else (hypercalls, bad ports, halting) is named and left to the caller. An ordinary
 * instruction is none of ours: its fault goes to the guest.
 *
 * The rule: pure functions of registers and guest memory. An instruction that is not EMULATED changes
 * nothing, but for accessed bits of descriptors, as hardware. Every loop is bounded; nothing recurses.
 */
#ifndef TENDER_SANDBOX_EMULATE_H
#define TENDER_SANDBOX_EMULATE_H

#include "cpu.h"
#include "decode.h"
#include "guest_memory.h"

enum emulation {
    EMULATED,        /* done; rip is past it */
    EMULATED_OUT,    /* a 32-bit OUT of `value` to `port`; rip is at the instruction */
    BAD_PORT,        /* any other IN or OUT; `port` */
    HALTED,          /* HLT; rip is past it, as KVM leaves it */
    NOT_PRIVILEGED,  /* an ordinary instruction: its fault is the guest's */
    GUEST_FAULT,     /* `exception` is the guest's; rip is at the instruction */
    GUEST_INTERRUPT, /* INT n or INT3: `exception` is the guest's; rip is at the instruction */
    UNSUPPORTED,     /* privileged, and nothing we do: `bytes` */
};

struct emulated {
    struct exception exception; /* for fault_deliver(), which knows how far to return */
    uint32_t value;
    uint16_t port;
    uint8_t length; /* of the instruction and of `bytes`; 0 if it could not be fetched or is not ours */
    uint8_t bytes[INSTRUCTION_MAX];
};

enum emulation emulate(const struct guest_memory *memory, struct system_state *state, struct cpu *cpu,
                       struct emulated *out);

#endif
