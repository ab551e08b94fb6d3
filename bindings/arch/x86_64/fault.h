/*
 * Delivers exceptions as the CPU does in 64-bit mode at CPL 0: through the guest's IDT, on the
 * guest's stack or on one of its TSS's stacks. If that fails, the result is #DF, and then a
 * shutdown.
 *
 * The rule: the guest's registers change only if a handler is entered. Intel SDM volume 3, 6.12 to
 * 6.15.
 */
#ifndef TENDER_SANDBOX_FAULT_H
#define TENDER_SANDBOX_FAULT_H

#include "cpu.h"
#include "guest_memory.h"

/*
 * Returns true if `cpu` is now at the first instruction of a handler; state->cr2 has the value that
 * the handler reads. Returns false on a triple fault, which ends the guest; `cpu` is then
 * unchanged.
 *
 * Before the call, cpu->rip must be the address that the host reports: the instruction that raised
 * the exception, or for a trap (#DB, or the #BP of a native INT3) the next one. cpu->rflags must be
 * the host's value too: it has RF set for a fault, as the frame must have.
 */
bool fault_deliver(const struct guest_memory *memory, struct system_state *state, struct cpu *cpu,
                   const struct exception *exception);

/*
 * Returns the error code of a page fault at `address` that ring 0 gets under the contract's page
 * tables. Only the write bit of the host's error code is used: its U and I/D bits are those of ring
 * 3, and its P bit depends on whether the host has touched the page.
 */
uint32_t fault_error_code(const struct guest_memory *memory, uint64_t address, uint64_t host_error);

#endif
