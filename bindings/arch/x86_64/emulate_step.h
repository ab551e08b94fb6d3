/*
 * The declarations that the files emulate*.c share for one instruction. No other file includes this
 * header.
 */
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
    uint64_t rip;    /* the address after the instruction; committed if the result is EMULATED */
    uint64_t rflags; /* committed in the same way */
};

enum emulation fault_of(struct step *s, enum vector vector, uint32_t error);

/*
 * Access to the operand that ModRM's rm names: memory, or a general register. A 32-bit write to a
 * register clears its upper half.
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

/* emulate_far.c: the instructions that change CS. */
enum emulation emulate_far_return(struct step *s);
enum emulation emulate_interrupt_return(struct step *s);
enum emulation emulate_far_branch(struct step *s, bool call);

#endif
