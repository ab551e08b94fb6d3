/*
 * Segment descriptors of the guest's GDT and LDT, as 64-bit mode at CPL 0 reads and checks them.
 *
 * The rule: a function that refuses changes nothing and fills `fault`. A function that accepts sets
 * the accessed bit, as hardware does, so that the same guest has the same memory in both backends.
 * Intel SDM volume 3, 3.4.5 and 3.5; volume 2, MOV, RET, IRET.
 */
#ifndef TENDER_SANDBOX_DESCRIPTOR_H
#define TENDER_SANDBOX_DESCRIPTOR_H

#include "guest_access.h"

struct descriptor {
    uint64_t low;
    uint64_t high;    /* system descriptors only */
    uint64_t address; /* the guest's address of the descriptor */
};

#define SYSTEM_TYPE_LDT           2u
#define SYSTEM_TYPE_TSS_AVAILABLE 9u

uint64_t descriptor_base(const struct descriptor *d);
uint32_t descriptor_limit(const struct descriptor *d);

/* Returns the form that a selector has in an error code. */
uint32_t selector_error(uint16_t selector);
bool selector_is_null(uint16_t selector);

/*
 * Reading CS and SS does not trap in ring 3, so the guest sees the host's selectors there. If it
 * uses one of them later, it means its own selector, which this function returns.
 */
uint16_t selector_of_guest(const struct system_state *state, uint16_t selector);

/* Checks a code segment to enter at CPL 0. The caller checks whether it is a 64-bit segment. */
bool code_segment_check(const struct guest_memory *memory, const struct system_state *state,
                        uint16_t selector, struct descriptor *d, struct exception *fault);
bool descriptor_is_64_bit(const struct descriptor *d);
bool descriptor_is_compatibility(const struct descriptor *d);

/*
 * Checks a selector for ES, SS, DS, FS or GS. Null is valid. segment_commit() then loads it and
 * cannot fail.
 */
bool data_segment_check(const struct guest_memory *memory, const struct system_state *state,
                        enum segment segment, uint16_t selector, struct descriptor *d,
                        struct exception *fault);
void segment_commit(struct system_state *state, enum segment segment, uint16_t selector,
                    const struct descriptor *d);

/* For LTR and LLDT. The 16-byte descriptor must have this type. LTR marks it busy. */
bool system_segment_load(const struct guest_memory *memory, const struct system_state *state,
                         uint16_t selector, uint32_t type, struct system_segment *loaded,
                         struct exception *fault);

#endif
