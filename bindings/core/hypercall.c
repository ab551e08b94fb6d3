#define _GNU_SOURCE
#include "hypercall.h"

#include <string.h>

enum needs { NEEDS_NOTHING, NEEDS_BLOCK, NEEDS_NET };

struct row {
    uint32_t bytes;           /* 0: there is no such hypercall */
    enum guest_access access; /* writable: the answer is written back */
    enum needs needs;
};

static const struct row table[HVT_HYPERCALL_MAX] = {
    [HVT_HYPERCALL_WALLTIME] = {sizeof(struct hvt_walltime), GUEST_WRITABLE, NEEDS_NOTHING},
    [HVT_HYPERCALL_PUTS] = {sizeof(struct hvt_puts), GUEST_READABLE, NEEDS_NOTHING},
    [HVT_HYPERCALL_POLL] = {sizeof(struct hvt_poll), GUEST_WRITABLE, NEEDS_NOTHING},
    [HVT_HYPERCALL_BLOCK_WRITE] = {sizeof(struct hvt_block_write), GUEST_WRITABLE, NEEDS_BLOCK},
    [HVT_HYPERCALL_BLOCK_READ] = {sizeof(struct hvt_block_read), GUEST_WRITABLE, NEEDS_BLOCK},
    [HVT_HYPERCALL_NET_WRITE] = {sizeof(struct hvt_net_write), GUEST_WRITABLE, NEEDS_NET},
    [HVT_HYPERCALL_NET_READ] = {sizeof(struct hvt_net_read), GUEST_WRITABLE, NEEDS_NET},
    [HVT_HYPERCALL_HALT] = {sizeof(struct hvt_halt), GUEST_READABLE, NEEDS_NOTHING},
};

static const struct row block_batch_row = {sizeof(struct tender_block_batch), GUEST_WRITABLE, NEEDS_BLOCK};
static const struct row net_batch_row = {sizeof(struct tender_net_batch), GUEST_WRITABLE, NEEDS_NET};

/* Solo5's numbers are everyone's; ours only theirs who were granted the feature. NULL: none. */
static const struct row *row_of(const struct vm *vm, uint32_t number)
{
    if (number < HVT_HYPERCALL_MAX)
        return &table[number];
    if (number == TENDER_HYPERCALL_BLOCK_BATCH && vm->extensions & TENDER_FEATURE_BLOCK_BATCH)
        return &block_batch_row;
    if (number == TENDER_HYPERCALL_NET_BATCH && vm->extensions & TENDER_FEATURE_NET_BATCH)
        return &net_batch_row;
    return NULL;
}

/* By name and not by address, so that a compiler which sees all of it makes one function of the way there. */
static enum verdict serve(struct vm *vm, uint32_t number, union hypercall_args *args)
{
    switch (number) {
    case HVT_HYPERCALL_WALLTIME:
        return hc_walltime(vm, args);
    case HVT_HYPERCALL_PUTS:
        return hc_puts(vm, args);
    case HVT_HYPERCALL_POLL:
        return hc_poll(vm, args);
    case HVT_HYPERCALL_BLOCK_WRITE:
        return hc_block_write(vm, args);
    case HVT_HYPERCALL_BLOCK_READ:
        return hc_block_read(vm, args);
    case HVT_HYPERCALL_NET_WRITE:
        return hc_net_write(vm, args);
    case HVT_HYPERCALL_NET_READ:
        return hc_net_read(vm, args);
    case TENDER_HYPERCALL_BLOCK_BATCH:
        return hc_block_batch(vm, args);
    case TENDER_HYPERCALL_NET_BATCH:
        return hc_net_batch(vm, args);
    default:
        return hc_halt(vm, args);
    }
}

static bool row_is_served(const struct vm *vm, const struct row *row)
{
    return row && row->bytes && (row->needs != NEEDS_BLOCK || vm->block_count) &&
           (row->needs != NEEDS_NET || vm->net_count);
}

static enum verdict settle(struct vm *vm, uint32_t number, gpa_t gpa)
{
    struct vm_event *event = &vm->shared->event;
    event->number = number;
    const struct row *row = row_of(vm, number);
    if (!row_is_served(vm, row)) {
        event->kind = EVENT_BAD_HYPERCALL;
        return LEAVE;
    }
    void *structure = guest_memory_at(&vm->memory, gpa, row->bytes, row->access);
    if (!structure)
        return leave_bad_access(vm, gpa, row->bytes);
    union hypercall_args args;
    memcpy(&args, structure, row->bytes);
    enum verdict verdict = serve(vm, number, &args);
    if (verdict == CONTINUE && row->access == GUEST_WRITABLE)
        memcpy(structure, &args, row->bytes);
    else if (verdict == LEAVE && (event->kind == EVENT_INTERRUPTED || vm->resume.again)) {
        vm->resume.number = number;
        vm->resume.gpa = gpa;
    }
    return verdict;
}

enum verdict hypercall(struct vm *vm, uint32_t number, gpa_t gpa)
{
    if (number < HVT_HYPERCALL_MAX)
        vm->shared->counters.hypercalls[number]++;
    vm->resume = (struct vm_resume){0};
    return settle(vm, number, gpa);
}

enum verdict hypercall_out(struct vm *vm, uint32_t port, uint32_t gpa)
{
    if (port < HVT_PORT_BASE || !row_of(vm, port - HVT_PORT_BASE))
        return leave_bad_port(vm, port);
    return hypercall(vm, port - HVT_PORT_BASE, gpa);
}

enum verdict hypercall_resume(struct vm *vm)
{
    if (!vm->resume.number)
        return CONTINUE;
    uint32_t number = vm->resume.number;
    vm->resume.number = 0; /* its progress stays */
    vm->resume.again = false;
    return settle(vm, number, vm->resume.gpa);
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
