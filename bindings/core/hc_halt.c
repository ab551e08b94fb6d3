/* halt: the guest's own end, with what it left behind if it trapped. */
#define _GNU_SOURCE
#include <string.h>

#include "hypercall.h"

enum verdict hc_halt(struct vm *vm, union hypercall_args *args)
{
    struct vm_event *event = &vm->shared->event;
    const struct hvt_halt *halt = &args->halt;
    event->cookie_valid = 0;
    if (halt->cookie) {
        const void *cookie = guest_bytes_at(&vm->memory, halt->cookie, HVT_HALT_COOKIE_BYTES);
        if (!cookie)
            return leave_bad_access(vm, halt->cookie, HVT_HALT_COOKIE_BYTES);
        memcpy(&event->trap, cookie, sizeof event->trap);
        event->cookie_valid = 1;
    }
    event->kind = EVENT_HALT;
    event->status = halt->exit_status;
    return LEAVE;
}
