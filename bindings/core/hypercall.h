/*
 * The hypercalls: a table, one row a call (hypercalls.def). Guest input meets the host here.
 *
 * Every structure is found, checked and copied once, by hypercall(); a handler works on the copy and the
 * answer goes back through one place. Nothing else enters the guest but what a handler fills, which it tells
 * by entered().
 */
#ifndef TENDER_HYPERCALL_H
#define TENDER_HYPERCALL_H

#include "vm.h"

union hypercall_args {
#define HYPERCALL(number, name, structure, access, feature, device) structure name;
#include "hypercalls.def"
};

/* Handles hypercall `number` with its structure at `gpa`. CONTINUE, or EXIT with the event filled. */
enum verdict hypercall(struct vm *vm, uint32_t number, gpa_t gpa);

/* The guest executed a 32-bit `out` of `gpa` to `port`: a hypercall, or EVENT_BAD_PORT. */
enum verdict hypercall_out(struct vm *vm, uint32_t port, uint32_t gpa);

/* A handler that a signal interrupts sets vm->resume; the backend calls this before it enters the guest
 * again. The handler gets the structure as it was copied first, whatever guest memory says by then. */
enum verdict hypercall_resume(struct vm *vm);

/* The handlers, one a row: hc_walltime() and so on. Each gets its own copy of the structure and may change
 * it. */
#define HYPERCALL(number, name, structure, access, feature, device)                                          \
    enum verdict hc_##name(struct vm *vm, union hypercall_args *args);
#include "hypercalls.def"

/* In messages, counters and JSON; NULL: there is no such hypercall. */
const char *hypercall_name(uint32_t number);

/* Of a bit of TENDER_FEATURE_; NULL: there is no such feature. */
const char *feature_name(uint32_t bit);

/* Of those features that a guest wants, those that it gets: each that is known, with all that it needs. */
uint32_t features_granted(uint32_t wanted);

/* Exits the run loop with EVENT_BAD_PORT. */
enum verdict exit_bad_port(struct vm *vm, uint32_t port);

/* Exits the run loop with EVENT_BAD_ACCESS for this range. */
enum verdict exit_bad_access(struct vm *vm, gpa_t gpa, uint64_t len);

/* Leaves because a wait was interrupted: stopped, or a signal (the hypercall is then resumed later). */
enum verdict exit_interrupted(struct vm *vm);

/* Leaves because the run is to end: by vm_stop(), or by a fault that a device's thread found. */
enum verdict exit_stopped(struct vm *vm);

/* write() that turns a closed reader into -EPIPE without the process hearing of it. Bytes or -errno. */
int64_t write_quietly(int fd, const void *data, uint64_t len);

#endif
