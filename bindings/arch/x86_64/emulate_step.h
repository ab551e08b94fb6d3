/* One instruction on its way through the files emulate*.c: what they share, and nobody else includes. */
#ifndef TENDER_SANDBOX_EMULATE_STEP_H
#define TENDER_SANDBOX_EMULATE_STEP_H

#include "descriptor.h"
#include "emulate.h"

struct step {
    const struct guest_memory *memory;
    struct system_state *state;
    struct cpu *cpu;
    struct instruction in;
    struct exception *fault;
    uint64_t rip;    /* after it; committed if it is EMULATED */
    uint64_t rflags; /* likewise */
};

enum emulation fault_of(struct step *s, enum vector vector, uint32_t error);

/* The operand that ModRM's rm names: memory, or a general register. A 32-bit register write clears the rest.
 */
bool operand_read(struct step *s, void *to, uint32_t bytes);
bool memory_operand_read(struct step *s, void *to, uint32_t bytes);
void register_write(struct cpu *cpu, uint32_t number, uint64_t value, uint32_t bytes);

/* Loads a data segment register: check and commit. */
bool segment_load(struct step *s, enum segment segment, uint16_t selector);

/* emulate_registers.c: control and debug registers, MSRs, XCR0. */
enum emulation emulate_control_register(struct step *s);
enum emulation emulate_debug_register(struct step *s);
enum emulation emulate_write_cr0(struct step *s, uint64_t value);
enum emulation emulate_rdmsr(struct step *s);
enum emulation emulate_wrmsr(struct step *s);
enum emulation emulate_xsetbv(struct step *s);
uint64_t control_register_0(const struct system_state *state);

/* emulate_far.c: what changes CS. */
enum emulation emulate_far_return(struct step *s);
enum emulation emulate_interrupt_return(struct step *s);
enum emulation emulate_far_branch(struct step *s, bool call);

#endif
