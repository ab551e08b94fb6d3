/* What C counts and says about one VM; Python reads it through cffi (bindings/include/native.h). */
#ifndef TENDER_VM_TYPES_H
#define TENDER_VM_TYPES_H

#include "tender_abi.h"

/* <native:types> */

#define CONSOLE_DISCARD (-1)
#define CONSOLE_PYTHON  (-2) /* each write comes back as EVENT_CONSOLE */

struct vm_counters {
    uint64_t exits;
    uint64_t hypercalls[9];
    uint64_t console_bytes;
    uint64_t console_lost_bytes;
    uint64_t net_rx_packets;
    uint64_t net_rx_bytes;
    uint64_t net_tx_packets;
    uint64_t net_tx_bytes;
    uint64_t net_tx_drops;
    uint64_t net_rx_errors;
    uint64_t block_reads;
    uint64_t block_read_bytes;
    uint64_t block_writes;
    uint64_t block_write_bytes;
    uint64_t block_errors;
};

/* CLOCK_MONOTONIC, ns; 0: not reached */
struct vm_timeline {
    uint64_t first_run;
    uint64_t first_exit;
    uint64_t first_console;
    uint64_t guest_exit;
};

/* Why vm_run() came back. */
enum vm_event_kind {
    EVENT_NONE = 0,
    EVENT_HALT = 1,        /* status, cookie_valid, trap */
    EVENT_STOPPED = 2,     /* vm_stop() */
    EVENT_INTERRUPTED = 3, /* a signal is pending for this thread: handle it, then call vm_run() again */
    EVENT_CONSOLE = 4,     /* gpa, len: take the bytes, then call vm_run() again */
    EVENT_TRANSLATION_FAULT = 5, /* rip */
    EVENT_BAD_PORT = 6,          /* port */
    EVENT_BAD_HYPERCALL = 7,     /* number */
    EVENT_BAD_ACCESS = 8,        /* number, gpa, len */
    EVENT_UNHANDLED_EXIT = 9,    /* detail = exit reason, rip */
    EVENT_ENTRY_FAILURE = 10,    /* detail = hardware reason */
    EVENT_INTERNAL_ERROR = 11,   /* detail = suberror, rip */
    EVENT_HOST_ERROR = 12,       /* os_error */
};

struct vm_event {
    uint32_t kind; /* enum vm_event_kind */
    uint32_t number;
    uint32_t port;
    int32_t status;
    int32_t os_error;
    uint32_t cookie_valid;
    uint64_t detail;
    uint64_t rip;
    gpa_t gpa;
    uint64_t len;
    struct hvt_trap_cookie trap;
};

/* The part of a VM that Python may look at, at any time and from any thread. */
struct vm_shared {
    struct vm_counters counters;
    struct vm_timeline timeline;
    struct vm_event event;
};

/* </native:types> */

#endif
