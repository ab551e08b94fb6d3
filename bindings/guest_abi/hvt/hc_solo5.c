/*
 * The handlers of Solo5's hypercalls. They check hvt's structures, call the devices, and return
 * hvt's results. The devices (devices/) do the work, and do not know the guest's structures.
 */
#define _GNU_SOURCE
#include <string.h>
#include <time.h>

#include "block.h"
#include "console.h"
#include "hvt_answer.h"
#include "net_frame.h"

/* For monotonic time a guest uses the time stamp counter and the frequency in boot info. */
enum verdict hc_walltime(struct vm *vm, union hypercall_args *args)
{
    (void)vm;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    args->walltime.nsecs = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    return CONTINUE;
}

enum verdict hc_puts(struct vm *vm, union hypercall_args *args)
{
    const struct hvt_puts *call = &args->puts;
    const void *data = guest_bytes_at(&vm->memory, call->data, call->len);
    return data ? console_write(vm, call->data, data, call->len) : exit_bad_access(vm, call->data, call->len);
}

/* Block devices are never in the ready set. */
enum verdict hc_poll(struct vm *vm, union hypercall_args *args)
{
    struct hvt_poll *call = &args->poll;
    if (net_wait(vm, call->timeout_nsecs, &call->ready_set) == EXIT)
        return EXIT;
    call->ret = 0;
    for (uint64_t set = call->ready_set; set; set &= set - 1)
        call->ret++;
    return CONTINUE;
}

enum verdict hc_net_write(struct vm *vm, union hypercall_args *args)
{
    struct hvt_net_write *call = &args->net_write;
    if (net_needs_check(vm) && net_check_detached(vm) == EXIT)
        return EXIT;
    const enum device_answer answer =
        net_send_from(vm, &vm->shared->counters, call->handle, call->data, call->len, NULL);
    return hvt_answer(vm, answer, call->data, call->len, &call->ret);
}

enum verdict hc_net_read(struct vm *vm, union hypercall_args *args)
{
    struct hvt_net_read *call = &args->net_read;
    if (net_needs_check(vm) && net_check_detached(vm) == EXIT)
        return EXIT;
    const enum device_answer answer =
        net_receive_to(vm, &vm->shared->counters, call->handle, call->data, &call->len, NULL);
    return hvt_answer(vm, answer, call->data, call->len, &call->ret);
}

/*
 * One whole transfer for each call, of any length. A host error (no space, medium error, truncated
 * file) is a result that the guest must handle.
 */
enum verdict hc_block_write(struct vm *vm, union hypercall_args *args)
{
    struct hvt_block_write *call = &args->block_write;
    const enum device_answer answer = block_write_from(vm, call->handle, call->offset, call->data, call->len);
    return hvt_answer(vm, answer, call->data, call->len, &call->ret);
}

enum verdict hc_block_read(struct vm *vm, union hypercall_args *args)
{
    struct hvt_block_read *call = &args->block_read;
    const enum device_answer answer = block_read_to(vm, call->handle, call->offset, call->data, call->len);
    return hvt_answer(vm, answer, call->data, call->len, &call->ret);
}

/* The guest ends itself. If it trapped, the cookie has its registers. */
enum verdict hc_halt(struct vm *vm, union hypercall_args *args)
{
    struct vm_event *event = &vm->shared->event;
    const struct hvt_halt *halt = &args->halt;
    event->cookie_valid = 0;
    if (halt->cookie) {
        const void *cookie = guest_bytes_at(&vm->memory, halt->cookie, HVT_HALT_COOKIE_BYTES);
        if (!cookie)
            return exit_bad_access(vm, halt->cookie, HVT_HALT_COOKIE_BYTES);
        memcpy(&event->trap, cookie, sizeof event->trap);
        event->cookie_valid = 1;
    }
    event->kind = EVENT_HALT;
    event->status = halt->exit_status;
    return EXIT;
}
