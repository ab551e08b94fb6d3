/* Writes the records of hypercalls; trace.h has the format. All of it is off the hot path. */
#include "trace.h"

#include <string.h>

#include "hypercall.h"

static struct trace_record *slot_of(const struct vm *vm, uint64_t index)
{
    return &vm->trace[index & (TRACE_RECORDS - 1)];
}

static uint64_t about(uint64_t ticks, uint32_t number, uint32_t flags)
{
    const uint64_t ticks_max = (UINT64_C(1) << TRACE_TICKS_BITS) - 1;
    return (ticks < ticks_max ? ticks : ticks_max) | (uint64_t)(number & 0xFF) << TRACE_TICKS_BITS |
           (uint64_t)flags << 56;
}

static size_t structure_bytes(uint32_t number)
{
    switch (number) {
#define HYPERCALL(number, name, type, access, feature, device)                                               \
    case number: {                                                                                           \
        _Static_assert(sizeof(type) <= TRACE_ARGS_BYTES, #name);                                             \
        return sizeof(type);                                                                                 \
    }
#include "hypercalls.def"
    default:
        return 0;
    }
}

/* Copies from the guest's stack, without the call's structure, if it lies there. Returns TRACE_HAS_STACK, or
 * 0. */
static uint32_t copy_stack(const struct vm *vm, struct trace_record *record, size_t bytes)
{
    const uint64_t capacity = sizeof record->stack;
    const uint64_t distance = record->gpa - record->rsp; /* of a structure that lies below, very large */
    const uint64_t first = distance < capacity ? distance & ~UINT64_C(7) : capacity;
    const gpa_t behind = (record->gpa + bytes + 7) & ~UINT64_C(7);
    if (!record->rip)
        return 0;
    const void *const from = guest_bytes_at(&vm->memory, record->rsp, first);
    const void *const rest = first < capacity ? guest_bytes_at(&vm->memory, behind, capacity - first) : from;
    if (!from || !rest)
        return 0;
    memcpy(record->stack, from, first);
    memcpy(record->stack + first, rest, capacity - first);
    return TRACE_HAS_STACK;
}

static void copy_text(const struct vm *vm, uint8_t args[TRACE_ARGS_BYTES])
{
    struct hvt_puts puts;
    memcpy(&puts, args, sizeof puts);
    const uint64_t capacity = TRACE_ARGS_BYTES - sizeof puts;
    const uint64_t len = puts.len < capacity ? puts.len : capacity;
    const void *text = len ? guest_bytes_at(&vm->memory, puts.data, len) : NULL;
    if (text)
        memcpy(args + sizeof puts, text, len);
}

bool trace_begin(struct vm *vm, uint32_t number, gpa_t gpa, const struct trace_caller *caller)
{
    struct vm_shared *shared = vm->shared;
    const uint64_t head = shared->trace_head;
    if (head >= shared->trace_limit) {
        shared->registers_until = TRACE_REGISTERS_OFF;
        shared->trace_on = 0;
        return false;
    }
    struct trace_record *record = slot_of(vm, head);
    record->rip = (uint32_t)caller->rip; /* guest memory ends at 4 GiB */
    record->gpa = (uint32_t)gpa;
    record->rsp = caller->rsp;
    const uint32_t stack = copy_stack(vm, record, structure_bytes(number));
    record->about = about(0, number, TRACE_UNFINISHED | stack);
    record->begin = __builtin_ia32_rdtsc();
    __atomic_store_n(&record->index, head, __ATOMIC_RELEASE);
    return true;
}

void trace_end(struct vm *vm, enum verdict verdict)
{
    struct vm_shared *shared = vm->shared;
    const uint64_t end = __builtin_ia32_rdtsc();
    const uint64_t head = shared->trace_head;
    struct trace_record *record = slot_of(vm, head);
    const uint32_t number = (uint32_t)(record->about >> TRACE_TICKS_BITS) & 0xFF;
    const size_t bytes = structure_bytes(number);
    const void *structure = bytes ? guest_bytes_at(&vm->memory, record->gpa, bytes) : NULL;
    uint32_t flags = (uint32_t)(record->about >> 56) & TRACE_HAS_STACK;
    if (structure) {
        memcpy(record->args, structure, bytes);
        flags |= TRACE_HAS_ARGS;
        if (number == HVT_HYPERCALL_PUTS)
            copy_text(vm, record->args);
    }
    if (verdict == EXIT)
        flags |= TRACE_EXIT;
    record->about = about(end - record->begin, number, flags);
    /* A reader in another process sees the record before the head. */
    __atomic_store_n(&shared->trace_head, head + 1, __ATOMIC_RELEASE);
}

void trace_keep_on(struct vm_shared *shared)
{
    shared->trace_limit = UINT64_MAX;
    shared->registers_until = TRACE_REGISTERS_ON;
    shared->trace_on = 1;
}
