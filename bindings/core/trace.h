/*
 * The ring of the last hypercalls, for those who look at a guest from outside. It is off until somebody
 * writes to vm_shared: `tender trace`, by the kernel's process_vm_writev(2), or the flight recorder's option.
 * Off, it costs a hypercall nothing: the test for the first exit covers it (exit_is_noted() in vm.h), and the
 * ring's pages are not touched.
 *
 *   record N of the run lies in slot N % TRACE_RECORDS; vm_shared.trace_head is the number of the next one
 *
 * The slot of the next one holds the call that is being handled: TRACE_UNFINISHED, without `args`.
 *
 * The recording ends by itself when trace_head comes to trace_limit. An observer moves the limit on while it
 * looks, so an observer that is killed leaves nothing for long.
 *
 * A reader copies records and reads trace_head again: what the writer has overtaken meanwhile is lost. In the
 * sandbox the guest can write all of this, so it is text for people and nothing relies on it. The frames
 * of the network ring are no hypercalls and are not recorded. A batch is one record.
 */
#ifndef TENDER_TRACE_H
#define TENDER_TRACE_H

#include "vm.h"

#define TRACE_RECORDS     2048u
#define TRACE_ARGS_BYTES  48
#define TRACE_STACK_BYTES 104

struct trace_record {
    uint64_t begin; /* time stamp counter */
    uint64_t about; /* bits 0..47: ticks until the answer; 48..55: number; 56..63: TRACE_... */
    uint64_t index; /* N: a reader compares it */
    uint32_t rip;   /* of the `out`; 0: not known */
    uint32_t gpa;   /* of the call's structure */
    uint64_t rsp;
    uint8_t args[TRACE_ARGS_BYTES]; /* the call's structure as answered; of a `puts`, then its text */
    /* What lies at rsp, without the structure, if that lies there too: there should be the address that the
     * function returns to. */
    uint8_t stack[TRACE_STACK_BYTES];
};

/* Where the guest made the call. */
struct trace_caller {
    uint64_t rip, rsp;
};

#define TRACE_TICKS_BITS 48
#define TRACE_HAS_ARGS   1u /* the structure was readable */
#define TRACE_EXIT       2u /* the run loop exited with it */
#define TRACE_UNFINISHED 4u
#define TRACE_HAS_STACK  8u

#define TRACE_BYTES (TRACE_RECORDS * sizeof(struct trace_record))

_Static_assert(sizeof(struct trace_record) == 192, "three cache lines");
_Static_assert((TRACE_RECORDS & (TRACE_RECORDS - 1)) == 0, "a slot is the low bits of a number");

/* vm_shared.registers_until. On KVM, reading the registers costs 80 instructions of an exit. */
#define TRACE_REGISTERS_OFF 128
#define TRACE_REGISTERS_ON  UINT64_MAX

/* Begins the record of a hypercall. False: none is wanted any more, and the recording is now off. */
bool trace_begin(struct vm *vm, uint32_t number, gpa_t gpa, const struct trace_caller *caller);

/* Completes it. */
void trace_end(struct vm *vm, enum verdict verdict);

/* Keeps the recording on for the whole run: the flight recorder. Before the run. */
void trace_keep_on(struct vm_shared *shared);

#endif
