/*
 * The hypercalls: a table with one row for each (hypercalls.def). Guest input enters the host here.
 *
 * hypercall() finds, checks and copies each structure once. A handler works on the copy, and one
 * place writes the answer back. A handler may also fill guest memory that the structure names, and
 * reports that with entered(). Nothing else enters the guest.
 */
#ifndef TENDER_HYPERCALL_H
#define TENDER_HYPERCALL_H

#include "vm.h"

union hypercall_args {
#define HYPERCALL(number, name, structure, access, feature, device) structure name;
#include "hypercalls.def"
};

/*
 * Handles hypercall `number` with its structure at `gpa`. Returns CONTINUE, or EXIT with the event
 * filled.
 */
enum verdict hypercall(struct vm *vm, uint32_t number, gpa_t gpa);

/*
 * Handles a 32-bit `out` of `gpa` to `port` that the guest executed: a hypercall, or an exit with
 * EVENT_BAD_PORT.
 */
enum verdict hypercall_out(struct vm *vm, uint32_t port, uint32_t gpa);

/* The same off the hot path: the hypercall is recorded if vm_shared.trace_on is set (trace.h). */
struct trace_caller;
enum verdict hypercall_out_traced(struct vm *vm, uint32_t port, uint32_t gpa,
                                  const struct trace_caller *caller);

/*
 * If a signal interrupts a handler, vm->resume is set, and the backend calls this function before
 * it enters the guest again. The handler gets the structure as it was copied the first time, even
 * if guest memory has changed since.
 */
enum verdict hypercall_resume(struct vm *vm);

/*
 * The handlers, one for each row: hc_walltime() and so on. Each gets a copy of the structure, which
 * it may change.
 */
#define HYPERCALL(number, name, structure, access, feature, device)                                          \
    enum verdict hc_##name(struct vm *vm, union hypercall_args *args);
#include "hypercalls.def"

/* The name in messages, counters and JSON. NULL if there is no such hypercall. */
const char *hypercall_name(uint32_t number);

/* The name of a TENDER_FEATURE_ bit. NULL if there is no such feature. */
const char *feature_name(uint32_t bit);

/* Returns the features that a guest gets if it wants these: each that is known and has what it needs. */
uint32_t features_granted(uint32_t wanted);

/* Exits the run loop with EVENT_BAD_PORT. */
enum verdict exit_bad_port(struct vm *vm, uint32_t port);

/* Exits the run loop with EVENT_BAD_ACCESS for this range. */
enum verdict exit_bad_access(struct vm *vm, gpa_t gpa, uint64_t len);

/*
 * Exits the run loop because a wait was interrupted: with EVENT_STOPPED, or with EVENT_INTERRUPTED
 * for a signal. After a signal the hypercall is resumed later.
 */
enum verdict exit_interrupted(struct vm *vm);

/*
 * Exits the run loop because the run must end: after vm_stop(), or after a fault that a device's
 * thread found.
 */
enum verdict exit_stopped(struct vm *vm);

/*
 * write() which returns -EPIPE for a closed reader, and the process does not receive SIGPIPE.
 * Returns bytes or -errno.
 */
int64_t write_quietly(int fd, const void *data, uint64_t len);

#endif
