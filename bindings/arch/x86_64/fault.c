/* Delivery of exceptions through the guest's IDT; fault.h has the rule. */
#include "fault.h"

#include <string.h>

#include "descriptor.h"

#define ERROR_EXT 0x1u /* the event that was being delivered was not caused by a software interrupt */
#define ERROR_IDT 0x2u

#define GATE_BYTES       16u
#define GATE_INTERRUPT64 0xeu
#define GATE_TRAP64      0xfu
#define TSS_IST          0x24u /* IST1 */

/*
 *  63               48 47 46 45 44 43  40 39  35 34 32 31           16 15             0
 *  | offset 31..16    | P | DPL | 0 | type |     | IST | selector      | offset 15..0  |
 *  | reserved                                          | offset 63..32                 |
 */
struct gate {
    uint64_t low;
    uint64_t high;
};

enum exception_class { BENIGN, CONTRIBUTORY, PAGE_FAULT };

/* Intel SDM volume 3, table 6-4. */
static enum exception_class class_of(const struct exception *e)
{
    if (e->software)
        return BENIGN;
    switch (e->vector) {
    case VECTOR_DE:
    case VECTOR_TS:
    case VECTOR_NP:
    case VECTOR_SS:
    case VECTOR_GP:
    case VECTOR_CP:
        return CONTRIBUTORY;
    case VECTOR_PF:
        return PAGE_FAULT;
    default:
        return BENIGN;
    }
}

static bool has_error_code(const struct exception *e)
{
    if (e->software)
        return false;
    switch (e->vector) {
    case VECTOR_DF:
    case VECTOR_TS:
    case VECTOR_NP:
    case VECTOR_SS:
    case VECTOR_GP:
    case VECTOR_PF:
    case VECTOR_AC:
    case VECTOR_CP:
        return true;
    default:
        return false;
    }
}

static bool gate_read(const struct guest_memory *memory, const struct system_state *state, uint8_t vector,
                      struct gate *gate, struct exception *fault)
{
    uint32_t error = vector * 8u | ERROR_IDT;
    uint32_t offset = vector * GATE_BYTES;
    if (offset + GATE_BYTES - 1 > state->idtr.limit)
        return raise_error(fault, VECTOR_GP, error);
    if (!guest_read(memory, state->idtr.base + offset, gate, sizeof *gate, THROUGH_DATA, fault))
        return false;
    uint32_t type = (uint32_t)(gate->low >> 40) & 0x1f;
    if (type != GATE_INTERRUPT64 && type != GATE_TRAP64)
        return raise_error(fault, VECTOR_GP, error);
    if (!(gate->low >> 47 & 1))
        return raise_error(fault, VECTOR_NP, error);
    return true;
}

static bool stack_choose(const struct guest_memory *memory, const struct system_state *state,
                         const struct gate *gate, uint64_t *rsp, struct exception *fault)
{
    uint32_t ist = (uint32_t)(gate->low >> 32) & 7;
    if (ist != 0) {
        uint32_t offset = TSS_IST + (ist - 1) * 8;
        if (offset + 7 > state->tr.limit)
            return raise_error(fault, VECTOR_TS, selector_error(state->tr.selector));
        if (!guest_read(memory, state->tr.base + offset, rsp, sizeof *rsp, THROUGH_DATA, fault))
            return false;
    }
    *rsp &= ~0xfULL;
    return true;
}

/* Tries once to enter the handler. Returns false if the try raised `fault`; `cpu` is then unchanged. */
static bool enter_handler(const struct guest_memory *memory, struct system_state *state, struct cpu *cpu,
                          const struct exception *e, struct exception *fault)
{
    struct gate gate;
    struct descriptor code;
    uint64_t rsp = cpu->gpr[GPR_RSP];
    if (!gate_read(memory, state, e->vector, &gate, fault))
        return false;
    uint16_t selector = (uint16_t)(gate.low >> 16);
    uint64_t handler = (gate.low & 0xffff) | (gate.low >> 32 & 0xffff0000) | gate.high << 32;
    if (!code_segment_check(memory, state, selector, &code, fault))
        return false;
    if (!descriptor_is_64_bit(&code))
        return raise_error(fault, VECTOR_GP, selector_error(selector));
    if (!stack_choose(memory, state, &gate, &rsp, fault))
        return false;
    if (!address_is_canonical(handler))
        return raise_error(fault, VECTOR_GP, 0);

    uint64_t rflags = cpu->rflags & ~RFLAGS_IF;
    if (state->interrupts)
        rflags |= RFLAGS_IF;
    if (e->software)
        rflags &= ~RFLAGS_RF;
    enum { FRAME_WORDS = 6 };
    const uint64_t frame[FRAME_WORDS] = {
        e->error,
        e->software ? cpu->rip + e->length : cpu->rip,
        state->selector[SEG_CS],
        rflags,
        cpu->gpr[GPR_RSP],
        state->selector[SEG_SS],
    };
    const uint32_t first = has_error_code(e) ? 0 : 1;
    for (uint32_t i = FRAME_WORDS; i-- > first;) { /* in push order: CR2 is the first word that fails */
        rsp -= sizeof frame[i];
        if (!guest_write(memory, rsp, &frame[i], sizeof frame[i], THROUGH_STACK, fault))
            return false;
    }

    cpu->gpr[GPR_RSP] = rsp;
    cpu->rip = handler;
    cpu->rflags &= ~(RFLAGS_TF | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM);
    state->selector[SEG_CS] = (uint16_t)selector_error(selector); /* RPL becomes CPL: 0 */
    if ((gate.low >> 40 & 0xf) == GATE_INTERRUPT64)
        state->interrupts = false;
    return true;
}

static bool makes_double_fault(const struct exception *first, const struct exception *second)
{
    enum exception_class a = class_of(first), b = class_of(second);
    return (a == CONTRIBUTORY && b == CONTRIBUTORY) || (a == PAGE_FAULT && b != BENIGN);
}

bool fault_deliver(const struct guest_memory *memory, struct system_state *state, struct cpu *cpu,
                   const struct exception *exception)
{
    struct exception current = *exception;
    if (class_of(&current) == PAGE_FAULT)
        state->cr2 = current.cr2;
    /* The longest sequence: benign, contributory, #PF, #DF. */
    for (uint32_t tries = 0; tries < 4; tries++) {
        struct exception next;
        if (enter_handler(memory, state, cpu, &current, &next))
            return true;
        if (next.vector == VECTOR_PF) /* even if it becomes #DF or a shutdown: 6.15, the footnote of #PF */
            state->cr2 = next.cr2;
        if (current.vector == VECTOR_DF && !current.software)
            return false;
        if (next.vector != VECTOR_PF && !current.software)
            next.error |= ERROR_EXT;
        current = makes_double_fault(&current, &next) ? (struct exception){.vector = VECTOR_DF} : next;
    }
    return false;
}

uint32_t fault_error_code(const struct guest_memory *memory, uint64_t address, uint64_t host_error)
{
    return ((uint32_t)host_error & PF_WRITE) | (address_is_present(memory, address) ? PF_PRESENT : 0);
}
