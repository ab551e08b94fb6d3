/* Dispatches hypercalls by the rows of hypercalls.def; hypercall.h has the contract. */
#define _GNU_SOURCE
#include "hypercall.h"

#include <string.h>

#include "entered.h"
#include "trace.h"

/*
 * Each number of Solo5's range has a port, even a number that is not a hypercall. A hypercall of
 * our extension has a port only for a guest that was granted its feature.
 */
static bool has_port(const struct vm *vm, uint32_t number)
{
    if (number < HVT_HYPERCALL_MAX)
        return true;
    switch (number) {
#define HYPERCALL(number, name, structure, access, feature, device)
#define EXTENSION_HYPERCALL(number, name, structure, access, feature, device)                                \
    case number:                                                                                             \
        return vm->extensions & (feature);
#include "hypercalls.def"
    default:
        return false;
    }
}

static inline __attribute__((always_inline)) bool has_device(const struct vm *vm, uint32_t kind)
{
    return !kind || vm->count_of[kind];
}

/*
 * Serves one row of the table. It is inlined once for each row, so that for the compiler the size
 * of the structure is a constant, its copy a few moves, and the call of the handler direct.
 * GUEST_WRITABLE: the answer is written back.
 */
static inline __attribute__((always_inline)) enum verdict
serve_row(struct vm *vm, uint32_t number, gpa_t gpa, bool resumed, size_t bytes, enum guest_access access,
          enum verdict (*serve)(struct vm *, union hypercall_args *))
{
    void *structure = guest_memory_at(&vm->memory, gpa, bytes, access);
    if (!structure)
        return exit_bad_access(vm, gpa, bytes);
    union hypercall_args args;
    memcpy(&args, resumed ? vm->resume.structure : structure, bytes);
    enum verdict verdict = serve(vm, &args);
    if (verdict == CONTINUE) {
        if (access == GUEST_WRITABLE)
            guest_put(&vm->memory, structure, &args, bytes, ENTERED_ANSWER);
    } else if (vm->shared->event.kind == EVENT_INTERRUPTED || vm->resume.again) {
        vm->resume.number = number;
        vm->resume.gpa = gpa;
        memcpy(vm->resume.structure, &args, bytes);
    }
    return verdict;
}

static enum verdict exit_bad_hypercall(struct vm *vm)
{
    vm->shared->event.kind = EVENT_BAD_HYPERCALL;
    return EXIT;
}

_Static_assert(TENDER_HYPERCALL_MAX <= sizeof(((struct vm_counters *)0)->hypercalls) / sizeof(uint64_t),
               "each has its counter");
_Static_assert(sizeof(union hypercall_args) == sizeof(((struct vm_resume *)0)->structure), "it holds any");

/*
 * The table. A hypercall for a kind of device that the guest does not have does not exist. The
 * function is inlined twice, once for resumed calls, so that other calls do not pay for that test.
 */
static inline __attribute__((always_inline)) enum verdict handle(struct vm *vm, uint32_t number, gpa_t gpa,
                                                                 bool resumed)
{
    vm->shared->event.number = number;
    switch (number) {
#define HYPERCALL(number, name, structure, access, feature, device)                                          \
    case number:                                                                                             \
        if (!has_device(vm, device) || ((feature) && !(vm->extensions & (feature))))                         \
            break;                                                                                           \
        return serve_row(vm, number, gpa, resumed, sizeof(structure), access, hc_##name);
#include "hypercalls.def"
    default:
        break;
    }
    return exit_bad_hypercall(vm);
}

enum verdict hypercall(struct vm *vm, uint32_t number, gpa_t gpa)
{
    if (number < TENDER_HYPERCALL_MAX)
        vm->shared->counters.hypercalls[number]++;
    /*
     * Field by field: without vector registers, a compiler clears the whole with a slow string
     * instruction.
     */
    vm->resume.number = 0;
    vm->resume.again = false;
    vm->resume.bytes_done = 0;
    vm->resume.poll_deadline_ns = 0;
    vm->resume.batch_done = 0;
    return handle(vm, number, gpa, false);
}

enum verdict hypercall_out(struct vm *vm, uint32_t port, uint32_t gpa)
{
    const uint32_t number = port - HVT_PORT_BASE; /* for a lower port it wraps, past all numbers */
    return has_port(vm, number) ? hypercall(vm, number, gpa) : exit_bad_port(vm, port);
}

/* A call that is resumed later has one record, with the whole time. */
static inline enum verdict traced(struct vm *vm, enum verdict verdict)
{
    vm->resume.is_traced = verdict == EXIT && vm->resume.number;
    if (!vm->resume.is_traced)
        trace_end(vm, verdict);
    return verdict;
}

enum verdict hypercall_out_traced(struct vm *vm, uint32_t port, uint32_t gpa,
                                  const struct trace_caller *caller)
{
    const uint32_t number = port - HVT_PORT_BASE;
    const bool is_traced =
        vm->shared->trace_on && has_port(vm, number) && trace_begin(vm, number, gpa, caller);
    const enum verdict verdict = hypercall_out(vm, port, gpa);
    return is_traced ? traced(vm, verdict) : verdict;
}

__attribute__((cold)) enum verdict hypercall_resume(struct vm *vm)
{
    if (!vm->resume.number)
        return CONTINUE;
    uint32_t number = vm->resume.number;
    vm->resume.number = 0; /* the fields for its progress keep their values */
    vm->resume.again = false;
    const bool is_traced = vm->resume.is_traced;
    vm->resume.is_traced = false;
    const enum verdict verdict = handle(vm, number, vm->resume.gpa, true);
    return is_traced ? traced(vm, verdict) : verdict;
}

enum verdict exit_bad_port(struct vm *vm, uint32_t port)
{
    vm->shared->event.kind = EVENT_BAD_PORT;
    vm->shared->event.port = port;
    return EXIT;
}

enum verdict exit_bad_access(struct vm *vm, gpa_t gpa, uint64_t len)
{
    vm->shared->event.kind = EVENT_BAD_ACCESS;
    vm->shared->event.gpa = gpa;
    vm->shared->event.len = len;
    return EXIT;
}

enum verdict exit_interrupted(struct vm *vm)
{
    if (atomic_load(&vm->stop_requested))
        return exit_stopped(vm);
    vm->shared->event.kind = EVENT_INTERRUPTED;
    return EXIT;
}

enum verdict exit_stopped(struct vm *vm)
{
    if (atomic_load_explicit(&vm->has_fault, memory_order_acquire)) /* pairs with the store that sets it */
        vm->shared->event = vm->fault;
    else
        vm->shared->event.kind = EVENT_STOPPED;
    return EXIT;
}
