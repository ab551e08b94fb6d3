/* Segment descriptors of the guest; descriptor.h has the rule. */
#include "descriptor.h"

#define TYPE_CODE        0x8u
#define TYPE_READABLE    0x2u /* of code */
#define TYPE_WRITABLE    0x2u /* of data */
#define TYPE_CONFORMING  0x4u /* of code */
#define TYPE_ACCESSED    0x1u
#define TYPE_BUSY        0x2u
#define SELECTOR_RPL     0x3u
#define SELECTOR_LDT     0x4u
#define DESCRIPTOR_BYTES 8u

/*
 * Linux's __USER_CS and __USER_DS. They are a part of its user ABI on x86_64, because sigreturn and
 * ptrace expose them.
 */
#define HOST_CS 0x33u
#define HOST_SS 0x2bu

static uint32_t type_of(const struct descriptor *d)
{
    return (uint32_t)(d->low >> 40) & 0xf;
}

static bool is_system(const struct descriptor *d)
{
    return !(d->low >> 44 & 1);
}

static uint32_t dpl_of(const struct descriptor *d)
{
    return (uint32_t)(d->low >> 45) & 3;
}

static bool is_present(const struct descriptor *d)
{
    return d->low >> 47 & 1;
}

bool descriptor_is_64_bit(const struct descriptor *d)
{
    return (d->low >> 53 & 3) == 1; /* L set, D clear */
}

bool descriptor_is_compatibility(const struct descriptor *d)
{
    return !(d->low >> 53 & 1);
}

uint64_t descriptor_base(const struct descriptor *d)
{
    return (d->low >> 16 & 0xffffff) | (d->low >> 56 << 24) | d->high << 32;
}

uint32_t descriptor_limit(const struct descriptor *d)
{
    uint32_t limit = (uint32_t)((d->low & 0xffff) | (d->low >> 32 & 0xf0000));
    return d->low >> 55 & 1 ? limit << 12 | 0xfff : limit;
}

uint32_t selector_error(uint16_t selector)
{
    return selector & ~SELECTOR_RPL;
}

bool selector_is_null(uint16_t selector)
{
    return selector_error(selector) == 0;
}

uint16_t selector_of_guest(const struct system_state *state, uint16_t selector)
{
    if (selector == HOST_CS)
        return state->selector[SEG_CS];
    if (selector == HOST_SS)
        return state->selector[SEG_SS];
    return selector;
}

static bool descriptor_read(const struct guest_memory *memory, const struct system_state *state,
                            uint16_t selector, uint32_t bytes, struct descriptor *d, struct exception *fault)
{
    bool local = selector & SELECTOR_LDT;
    uint64_t base = local ? state->ldtr.base : state->gdtr.base;
    uint32_t limit = local ? state->ldtr.limit : state->gdtr.limit;
    uint32_t offset = selector & ~(SELECTOR_RPL | SELECTOR_LDT);
    if (offset + bytes - 1 > limit)
        return raise_error(fault, VECTOR_GP, selector_error(selector));
    uint64_t words[2] = {0, 0};
    if (!guest_read(memory, base + offset, words, bytes, THROUGH_DATA, fault))
        return false;
    *d = (struct descriptor){words[0], words[1], base + offset};
    return true;
}

static bool type_bit_set(const struct guest_memory *memory, struct descriptor *d, uint32_t bit,
                         struct exception *fault)
{
    if (type_of(d) & bit)
        return true;
    uint8_t type_byte = (uint8_t)(d->low >> 40 | bit);
    d->low |= (uint64_t)bit << 40;
    return guest_write(memory, d->address + 5, &type_byte, 1, THROUGH_DATA, fault);
}

bool code_segment_check(const struct guest_memory *memory, const struct system_state *state,
                        uint16_t selector, struct descriptor *d, struct exception *fault)
{
    if (selector_is_null(selector))
        return raise_error(fault, VECTOR_GP, 0);
    if (!descriptor_read(memory, state, selector, DESCRIPTOR_BYTES, d, fault))
        return false;
    /* At CPL 0 the same rule holds for conforming and other segments: DPL 0. */
    if (is_system(d) || !(type_of(d) & TYPE_CODE) || dpl_of(d) != 0)
        return raise_error(fault, VECTOR_GP, selector_error(selector));
    if (!is_present(d))
        return raise_error(fault, VECTOR_NP, selector_error(selector));
    return type_bit_set(memory, d, TYPE_ACCESSED, fault);
}

static bool stack_segment_fits(const struct descriptor *d, uint16_t selector)
{
    return !is_system(d) && !(type_of(d) & TYPE_CODE) && type_of(d) & TYPE_WRITABLE && dpl_of(d) == 0 &&
           !(selector & SELECTOR_RPL);
}

static bool data_segment_fits(const struct descriptor *d, uint16_t selector)
{
    bool code = type_of(d) & TYPE_CODE;
    if (is_system(d) || (code && !(type_of(d) & TYPE_READABLE)))
        return false;
    bool conforming = code && type_of(d) & TYPE_CONFORMING;
    return conforming || (selector & SELECTOR_RPL) <= dpl_of(d);
}

bool data_segment_check(const struct guest_memory *memory, const struct system_state *state,
                        enum segment segment, uint16_t selector, struct descriptor *d,
                        struct exception *fault)
{
    bool stack = segment == SEG_SS;
    *d = (struct descriptor){0};
    if (selector_is_null(selector))
        return !stack || selector == 0 || raise_error(fault, VECTOR_GP, 0);
    if (!descriptor_read(memory, state, selector, DESCRIPTOR_BYTES, d, fault))
        return false;
    if (stack ? !stack_segment_fits(d, selector) : !data_segment_fits(d, selector))
        return raise_error(fault, VECTOR_GP, selector_error(selector));
    if (!is_present(d))
        return raise_error(fault, stack ? VECTOR_SS : VECTOR_NP, selector_error(selector));
    return type_bit_set(memory, d, TYPE_ACCESSED, fault);
}

void segment_commit(struct system_state *state, enum segment segment, uint16_t selector,
                    const struct descriptor *d)
{
    state->selector[segment] = selector;
    if (segment == SEG_FS)
        state->fs_base = descriptor_base(d);
    else if (segment == SEG_GS)
        state->gs_base = descriptor_base(d);
    else
        return; /* 64-bit mode ignores the base of all other segments */
    state->bases_changed = true;
}

bool system_segment_load(const struct guest_memory *memory, const struct system_state *state,
                         uint16_t selector, uint32_t type, struct system_segment *loaded,
                         struct exception *fault)
{
    struct descriptor d = {0};
    if (selector & SELECTOR_LDT)
        return raise_error(fault, VECTOR_GP, selector_error(selector));
    if (!descriptor_read(memory, state, selector, 2 * DESCRIPTOR_BYTES, &d, fault))
        return false;
    bool upper_type = d.high >> 40 & 0x1f; /* not 0: the upper half would be a descriptor of its own */
    if (!is_system(&d) || type_of(&d) != type || upper_type)
        return raise_error(fault, VECTOR_GP, selector_error(selector));
    if (!is_present(&d))
        return raise_error(fault, VECTOR_NP, selector_error(selector));
    if (!address_is_canonical(descriptor_base(&d)))
        return raise_error(fault, VECTOR_GP, selector_error(selector));
    if (type == SYSTEM_TYPE_TSS_AVAILABLE && !type_bit_set(memory, &d, TYPE_BUSY, fault))
        return false;
    *loaded = (struct system_segment){
        .selector = selector,
        .limit = descriptor_limit(&d),
        .base = descriptor_base(&d),
    };
    return true;
}
