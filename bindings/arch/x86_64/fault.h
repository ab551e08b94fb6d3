/*
 * Exceptions delivered as the CPU does it in 64-bit mode at CPL 0: through the guest's IDT, on its stack or
 * one of its TSS's, and to #DF and shutdown if that fails.
 *
 * The rule: the guest's registers change only if a handler is entered. Intel SDM volume 3, 6.12 to 6.15.
 */
#ifndef TENDER_SANDBOX_FAULT_H
#define TENDER_SANDBOX_FAULT_H

#include "cpu.h"
#include "guest_memory.h"

/*
 * True: cpu stands at the first instruction of a handler, and state->cr2 is what it may read. False: triple
 * fault, the guest is over; cpu is as it was. cpu->rip is the instruction that raised it, or for a trap (#DB,
 * the #BP of a native INT3) the next one, as the host reports it. rflags are the host's too: RF is set there
 * for a fault, as it must be in the frame.
 */
bool fault_deliver(const struct guest_memory *memory, struct system_state *state, struct cpu *cpu,
                   const struct exception *exception);

/*
 * The error code of a page fault at `address`, as ring 0 under the contract's page tables has it. From the
 * host's comes only whether it was a write: its U and I/D bits are ring 3's, its P bit tells whether the host
 * had touched the page yet.
 */
uint32_t fault_error_code(const struct guest_memory *memory, uint64_t address, uint64_t host_error);

#endif
