/*
 * Emulates, on a copy of the guest's registers, the instructions that a ring-0 guest executes and
 * ring 3 may not.
 *
 * Call it when the instruction at cpu->rip raised #GP or #UD. An instruction whose effect is only
 * on the guest is emulated here. For any other (a hypercall, a bad port, HLT) the result names it,
 * and the caller handles it. The fault of an ordinary instruction belongs to the guest.
 *
 * The rule: pure functions of registers and guest memory. An instruction that is not EMULATED
 * changes nothing except the accessed bits of descriptors, as on hardware. Every loop is bounded,
 * and nothing recurses.
 */
#ifndef TENDER_SANDBOX_EMULATE_H
#define TENDER_SANDBOX_EMULATE_H

#include "cpu.h"
#include "decode.h"
#include "guest_memory.h"

enum emulation {
    EMULATED,        /* done; rip is after the instruction */
    EMULATED_OUT,    /* a 32-bit OUT of `value` to `port`; rip is at the instruction */
    BAD_PORT,        /* any other IN or OUT, of `port` */
    HALTED,          /* HLT; rip is after it, as KVM leaves it */
    NOT_PRIVILEGED,  /* an ordinary instruction: its fault belongs to the guest */
    GUEST_FAULT,     /* deliver `exception` to the guest; rip is at the instruction */
    GUEST_INTERRUPT, /* INT n or INT3: deliver `exception` to the guest; rip is at the instruction */
    UNSUPPORTED,     /* privileged and not emulated; `bytes` has the instruction */
};

struct emulated {
    struct exception exception; /* for fault_deliver(), which computes the return address */
    uint32_t value;
    uint16_t port;
    uint8_t length; /* of the instruction and of `bytes`; 0 if it could not be fetched or is NOT_PRIVILEGED */
    uint8_t bytes[INSTRUCTION_MAX];
};

enum emulation emulate(const struct guest_memory *memory, struct system_state *state, struct cpu *cpu,
                       struct emulated *out);

#endif
