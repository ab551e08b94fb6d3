/*
 * The memory that tender-sandbox shares with the process that holds a VM: one memfd per VM.
 *
 *   0x0000  struct vm_shared        counters, timeline, event: written by the program, read by both
 *   0x1000  struct sandbox_config   written before the program starts, except `prepared`
 *   0x5000  boot info, manifest, command line: the guest's pages at HVT_BOOT_INFO_GPA
 *   0x9000  the console piece of an EVENT_CONSOLE, at most CONSOLE_PIECE_MAX bytes
 *   then    the ring of the last hypercalls (core/trace.h): pages that nobody touches until it is wanted
 *
 * The program is trusted until it enters the guest. After that the guest may have written anything into the
 * shared memory, because it lives in the same address space: the values in it are reports, and are never
 * obeyed.
 *
 * The control socket carries single bytes. To the program: SANDBOX_GO (once, then the guest is entered; and
 * after each piece of console). From the program: SANDBOX_READY (once, when no step of the set-up can
 * fail any more; a guest cannot take it back; two more bytes contain the layers in force), SANDBOX_EVENT
 * (read the event). If one side closes the socket, the other side ends.
 */
#ifndef TENDER_SANDBOX_CONFIG_H
#define TENDER_SANDBOX_CONFIG_H

#include <limits.h>

#include "device_ops.h"
#include "guest_memory.h"
#include "layers.h"
#include "output.h"
#include "trace.h"
#include "vm.h"

#include "fds.h"

#define SANDBOX_SHARED_OFFSET  0x0000u
#define SANDBOX_CONFIG_OFFSET  0x1000u
#define SANDBOX_BOOT_OFFSET    0x5000u
#define SANDBOX_CONSOLE_OFFSET 0x9000u
#define SANDBOX_TRACE_OFFSET   (SANDBOX_CONSOLE_OFFSET + CONSOLE_PIECE_MAX)
#define SANDBOX_VM_BYTES       (SANDBOX_TRACE_OFFSET + TRACE_BYTES)

/* In addition to the program's steps: the host's side reports this one for a program that was ended. */
#define SANDBOX_STEP_OUTER_FILTER 6

/* The signals that the program handles whether or not another process observes it. */
#define SANDBOX_FAULTS SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS

#define SANDBOX_GO    'g'
#define SANDBOX_READY 'r'
#define SANDBOX_EVENT 'e'

/* The layers that only the program knows about. It sends them after SANDBOX_READY, in the same write():
 * before the guest's first instruction, so the guest cannot have sent them. */
#define ISOLATION_OF_THE_PROGRAM (ISOLATION_LANDLOCK | ISOLATION_SECCOMP_FILTER | ISOLATION_CAPABILITIES)

struct sandbox_ready {
    uint8_t word;      /* SANDBOX_READY */
    uint8_t layers[2]; /* enum isolation_layer, the low byte first */
};

/*
 * For a program without an observer: the native command executes it in its own process, and the program
 * reports its end itself (program/alone.c). All zeros: there is an observer.
 */
struct sandbox_alone {
    uint32_t wanted;
    uint32_t hints;    /* print ways out */
    uint32_t required; /* isolation layers without which the guest is not started */
    uint32_t layers;   /* isolation layers that are already in force */
    uint32_t ignores_interrupts;
    uint32_t observed;     /* SANDBOX_FD_CONTROL is a socket to the observer of the end */
    uint64_t mask;         /* the signals that were blocked when the command started */
    char program[64];      /* the name that messages begin with */
    char time_over[96];    /* the message of the time limit; empty: there is no limit */
    struct output errors;  /* stderr; `fd` is SANDBOX_FD_STDERR whether stderr is open or not */
    struct output report;  /* `fd` is SANDBOX_FD_REPORT, or -1: no report is wanted */
    char report_name[512]; /* for the message if it cannot be written; empty: no message */
    char image[PATH_MAX];  /* its name as given */
    uint64_t start_ns;     /* when the command started */
    uint64_t created_ns;   /* when this process became the guest's */
};

/* The descriptor of a device whose type is in the table. */
static inline int sandbox_device_fd(uint32_t type, uint32_t handle)
{
    switch (type) {
#define DEVICE(type, name, word)                                                                             \
    case (type):                                                                                             \
        return SANDBOX_FDS_##name + (int)handle;
#include "devices.def"
    default:
        return -1;
    }
}

extern const struct machine_words sandbox_words; /* sandbox_words.c */

struct sandbox_config {
    uint64_t rip, rsp, rdi; /* of the start state: the others are 0, system registers are as in emulate.h */
    uint64_t mem_bytes;
    uint64_t template_bytes;
    gpa_t small_pages_end;   /* guest_small_pages_end() */
    uint64_t file_bytes_max; /* RLIMIT_FSIZE; UINT64_MAX: none */
    uint32_t guard_disks;    /* 1: that limit is not enough (disk_guard.h) */
    uint32_t kick_signal;
    uint32_t extensions; /* TENDER_FEATURE_... that the guest was granted */
    uint32_t device_end;
    struct vm_console console; /* its descriptor and the devices' have other numbers in the program: fds.h */
    uint32_t ends_at_once;     /* 1: no process reads its memory after it has reported its end */
    uint32_t user_is_shared;   /* 1: other processes may have this process's user, and may not look into it */
    uint64_t tracer; /* who may trace it, whatever Yama says: PR_SET_PTRACER's argument, 0: nobody */
    uint32_t range_count;
    _Atomic uint32_t
        prepared; /* set by the program: memory is as the guest will find it; pairs with sandbox_read() */
    struct sandbox_alone alone;
    struct guest_range ranges[GUEST_RANGES_MAX];
    struct vm_device devices[MFT_MAX_ENTRIES];
};

_Static_assert(sizeof(struct vm_shared) <= SANDBOX_CONFIG_OFFSET, "the shared page is one page");
_Static_assert(sizeof(struct sandbox_config) <= SANDBOX_BOOT_OFFSET - SANDBOX_CONFIG_OFFSET, "config fits");

#endif
