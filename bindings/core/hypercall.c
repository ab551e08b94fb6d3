#define _GNU_SOURCE
#include "hypercall.h"

#include <string.h>

/* Solo5's numbers are everyone's, and each has its port; ours are only theirs who were granted the feature.
 */
static bool has_port(const struct vm *vm, uint32_t number)
{
    return number < HVT_HYPERCALL_MAX ||
           (number == TENDER_HYPERCALL_BLOCK_BATCH && vm->extensions & TENDER_FEATURE_BLOCK_BATCH) ||
           (number == TENDER_HYPERCALL_NET_BATCH && vm->extensions & TENDER_FEATURE_NET_BATCH);
}

/* A row of the table: made anew for each, so that a structure's size is a number to the compiler, its copy a
 * few moves, and the handler a call by name. GUEST_WRITABLE: the answer is written back. */
static inline __attribute__((always_inline)) enum verdict
row(struct vm *vm, uint32_t number, gpa_t gpa, bool resumed, size_t bytes, enum guest_access access,
    enum verdict (*serve)(struct vm *, union hypercall_args *))
{
    void *structure = guest_memory_at(&vm->memory, gpa, bytes, access);
    if (!structure)
        return leave_bad_access(vm, gpa, bytes);
    union hypercall_args args;
    memcpy(&args, resumed ? vm->resume.structure : structure, bytes);
    enum verdict verdict = serve(vm, &args);
    if (verdict == CONTINUE) {
        if (access == GUEST_WRITABLE)
            memcpy(structure, &args, bytes);
    } else if (vm->shared->event.kind == EVENT_INTERRUPTED || vm->resume.again) {
        vm->resume.number = number;
        vm->resume.gpa = gpa;
        memcpy(vm->resume.structure, &args, bytes);
    }
    return verdict;
}

static enum verdict leave_bad_hypercall(struct vm *vm)
{
    vm->shared->event.kind = EVENT_BAD_HYPERCALL;
    return LEAVE;
}

_Static_assert(sizeof(union hypercall_args) == sizeof(((struct vm_resume *)0)->structure), "it holds any");

/* The table. A call of a kind of device that the guest has not is none. Made twice, once for calls that are
 * resumed, so that others do not pay for the question. */
static inline __attribute__((always_inline)) enum verdict settle(struct vm *vm, uint32_t number, gpa_t gpa,
                                                                 bool resumed)
{
    vm->shared->event.number = number;
    switch (number) {
    case HVT_HYPERCALL_WALLTIME:
        return row(vm, number, gpa, resumed, sizeof(struct hvt_walltime), GUEST_WRITABLE, hc_walltime);
    case HVT_HYPERCALL_PUTS:
        return row(vm, number, gpa, resumed, sizeof(struct hvt_puts), GUEST_READABLE, hc_puts);
    case HVT_HYPERCALL_POLL:
        return row(vm, number, gpa, resumed, sizeof(struct hvt_poll), GUEST_WRITABLE, hc_poll);
    case HVT_HYPERCALL_BLOCK_WRITE:
        if (!vm->block_count)
            break;
        return row(vm, number, gpa, resumed, sizeof(struct hvt_block_write), GUEST_WRITABLE, hc_block_write);
    case HVT_HYPERCALL_BLOCK_READ:
        if (!vm->block_count)
            break;
        return row(vm, number, gpa, resumed, sizeof(struct hvt_block_read), GUEST_WRITABLE, hc_block_read);
    case HVT_HYPERCALL_NET_WRITE:
        if (!vm->net_count)
            break;
        return row(vm, number, gpa, resumed, sizeof(struct hvt_net_write), GUEST_WRITABLE, hc_net_write);
    case HVT_HYPERCALL_NET_READ:
        if (!vm->net_count)
            break;
        return row(vm, number, gpa, resumed, sizeof(struct hvt_net_read), GUEST_WRITABLE, hc_net_read);
    case HVT_HYPERCALL_HALT:
        return row(vm, number, gpa, resumed, sizeof(struct hvt_halt), GUEST_READABLE, hc_halt);
    case TENDER_HYPERCALL_BLOCK_BATCH:
        if (!vm->block_count || !has_port(vm, number))
            break;
        return row(vm, number, gpa, resumed, sizeof(struct tender_block_batch), GUEST_WRITABLE,
                   hc_block_batch);
    case TENDER_HYPERCALL_NET_BATCH:
        if (!vm->net_count || !has_port(vm, number))
            break;
        return row(vm, number, gpa, resumed, sizeof(struct tender_net_batch), GUEST_WRITABLE, hc_net_batch);
    default:
        break;
    }
    return leave_bad_hypercall(vm);
}

enum verdict hypercall(struct vm *vm, uint32_t number, gpa_t gpa)
{
    if (number < HVT_HYPERCALL_MAX)
        vm->shared->counters.hypercalls[number]++;
    /* By field: as a whole, a compiler without vector registers clears it by a slow string instruction. */
    vm->resume.number = 0;
    vm->resume.again = false;
    vm->resume.bytes_done = 0;
    vm->resume.poll_deadline_ns = 0;
    vm->resume.batch_done = 0;
    return settle(vm, number, gpa, false);
}

enum verdict hypercall_out(struct vm *vm, uint32_t port, uint32_t gpa)
{
    const uint32_t number = port - HVT_PORT_BASE; /* of a lower port: past all numbers */
    return has_port(vm, number) ? hypercall(vm, number, gpa) : leave_bad_port(vm, port);
}

__attribute__((cold)) enum verdict hypercall_resume(struct vm *vm)
{
    if (!vm->resume.number)
        return CONTINUE;
    uint32_t number = vm->resume.number;
    vm->resume.number = 0; /* its progress stays */
    vm->resume.again = false;
    return settle(vm, number, vm->resume.gpa, true);
}

enum verdict leave_bad_port(struct vm *vm, uint32_t port)
{
    vm->shared->event.kind = EVENT_BAD_PORT;
    vm->shared->event.port = port;
    return LEAVE;
}

enum verdict leave_bad_access(struct vm *vm, gpa_t gpa, uint64_t len)
{
    vm->shared->event.kind = EVENT_BAD_ACCESS;
    vm->shared->event.gpa = gpa;
    vm->shared->event.len = len;
    return LEAVE;
}

enum verdict leave_interrupted(struct vm *vm)
{
    if (atomic_load(&vm->stop_requested))
        return leave_stopped(vm);
    vm->shared->event.kind = EVENT_INTERRUPTED;
    return LEAVE;
}

enum verdict leave_stopped(struct vm *vm)
{
    if (atomic_load_explicit(&vm->ring.broken, memory_order_acquire)) /* pairs with ring_break() */
        vm->shared->event = vm->ring.fault;
    else
        vm->shared->event.kind = EVENT_STOPPED;
    return LEAVE;
}
