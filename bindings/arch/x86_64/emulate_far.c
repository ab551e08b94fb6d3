/*
 * Far returns, calls and jumps, and IRET, from 64-bit mode at CPL 0 to 64-bit mode at CPL 0.
 *
 * An instruction that would leave that mode (another privilege level, compatibility mode, 16-bit
 * operands, a call gate) is UNSUPPORTED: no unikernel does it. Intel SDM volume 2, RET, IRET, CALL,
 * JMP. AMD's processors ignore REX.W before a far jump or call through memory and load 32 bits.
 * Here REX.W means 64 bits, as on Intel's processors.
 */
#include <string.h>

#include "emulate_step.h"

#define SELECTOR_RPL 3u

/*
 * The flags that IRET loads from the frame. AC has no effect in ring 0 but causes faults in ring 3:
 * it stays off.
 */
#define RFLAGS_STATUS 0x8d5ULL /* OF SF ZF AF PF CF */
#define RFLAGS_DF     0x400ULL
#define RFLAGS_ID     0x200000ULL
#define RFLAGS_LOADED (RFLAGS_STATUS | RFLAGS_TF | RFLAGS_DF | RFLAGS_NT | RFLAGS_RF | RFLAGS_ID)

/* Returns EMULATED if CS may become `selector` and RIP may become `rip`. */
static enum emulation enter_code_segment(struct step *s, uint16_t selector, uint64_t rip)
{
    struct descriptor d;
    if (!selector_is_null(selector) && selector & SELECTOR_RPL)
        return UNSUPPORTED;
    if (!code_segment_check(s->memory, s->state, selector, &d, s->fault))
        return GUEST_FAULT;
    if (descriptor_is_compatibility(&d))
        return UNSUPPORTED;
    if (!descriptor_is_64_bit(&d))
        return fault_of(s, VECTOR_GP, selector_error(selector));
    if (!address_is_canonical(rip))
        return fault_of(s, VECTOR_GP, 0);
    return EMULATED;
}

/* Reads `count` stack slots of the operand's size. */
static bool slots_read(struct step *s, uint64_t *slots, uint32_t count)
{
    uint32_t bytes = operand_bytes(&s->in);
    uint8_t frame[5 * 8];
    if (!guest_read(s->memory, s->cpu->gpr[GPR_RSP], frame, count * bytes, THROUGH_STACK, s->fault))
        return false;
    for (uint32_t i = 0; i < count; i++) {
        slots[i] = 0;
        memcpy(&slots[i], frame + i * bytes, bytes);
    }
    return true;
}

enum emulation emulate_far_return(struct step *s)
{
    uint64_t slots[2]; /* rip, cs */
    if (operand_bytes(&s->in) == 2)
        return UNSUPPORTED;
    if (!slots_read(s, slots, 2))
        return GUEST_FAULT;
    uint16_t selector = selector_of_guest(s->state, (uint16_t)slots[1]);
    enum emulation entered = enter_code_segment(s, selector, slots[0]);
    if (entered != EMULATED)
        return entered;
    s->state->selector[SEG_CS] = selector;
    s->cpu->gpr[GPR_RSP] += 2 * operand_bytes(&s->in) + s->in.immediate;
    s->rip = slots[0];
    return EMULATED;
}

enum emulation emulate_interrupt_return(struct step *s)
{
    uint64_t slots[5]; /* rip, cs, rflags, rsp, ss */
    struct descriptor stack;
    if (s->cpu->rflags & RFLAGS_NT)
        return fault_of(s, VECTOR_GP, 0);
    if (operand_bytes(&s->in) == 2)
        return UNSUPPORTED;
    if (!slots_read(s, slots, 5))
        return GUEST_FAULT;
    uint16_t code_selector = selector_of_guest(s->state, (uint16_t)slots[1]);
    uint16_t stack_selector = selector_of_guest(s->state, (uint16_t)slots[4]);
    enum emulation entered = enter_code_segment(s, code_selector, slots[0]);
    if (entered != EMULATED)
        return entered;
    if (!data_segment_check(s->memory, s->state, SEG_SS, stack_selector, &stack, s->fault))
        return GUEST_FAULT;
    s->state->selector[SEG_CS] = code_selector;
    segment_commit(s->state, SEG_SS, stack_selector, &stack);
    s->state->interrupts = slots[2] & RFLAGS_IF;
    s->cpu->gpr[GPR_RSP] = slots[3];
    s->rip = slots[0];
    s->rflags = (slots[2] & RFLAGS_LOADED) | RFLAGS_FIXED | RFLAGS_IF;
    return EMULATED;
}

enum emulation emulate_far_branch(struct step *s, bool call)
{
    uint32_t bytes = operand_bytes(&s->in);
    uint8_t pointer[10];
    uint64_t target = 0;
    uint16_t selector;
    if (s->in.mod == 3)
        return NOT_PRIVILEGED; /* #UD */
    if (bytes == 2)
        return UNSUPPORTED;
    if (!memory_operand_read(s, pointer, bytes + 2))
        return GUEST_FAULT;
    memcpy(&target, pointer, bytes);
    memcpy(&selector, pointer + bytes, sizeof selector);
    selector = selector_of_guest(s->state, selector);
    enum emulation entered = enter_code_segment(s, selector, target);
    if (entered != EMULATED)
        return entered;
    if (call) {
        uint64_t slots[2] = {s->rip, s->state->selector[SEG_CS]};
        uint8_t frame[2 * 8];
        memcpy(frame, &slots[0], bytes);
        memcpy(frame + bytes, &slots[1], bytes);
        if (!guest_write(s->memory, s->cpu->gpr[GPR_RSP] - 2 * bytes, frame, 2 * bytes, THROUGH_STACK,
                         s->fault))
            return GUEST_FAULT;
        s->cpu->gpr[GPR_RSP] -= 2 * bytes;
    }
    s->state->selector[SEG_CS] = selector;
    s->rip = target;
    return EMULATED;
}
