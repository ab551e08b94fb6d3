/*
 * What the process that holds a VM tells tender-sandbox, and how the two share it: one memfd a VM.
 *
 *   0x0000  struct sandbox_shared   counters, timeline, event: written by the program, read by both
 *   0x1000  struct sandbox_config   written before the program starts, but for `prepared`
 *   0x5000  boot info, manifest, command line: the guest's pages at HVT_BOOT_INFO_GPA
 *   0x9000  the console piece of an EVENT_CONSOLE, at most CONSOLE_PIECE_MAX bytes
 *
 * The program is trusted until it enters the guest. From then on the guest may have written anything into the
 * shared memory, for it lives in the same address space: what is read there is a report, never an
 * instruction.
 *
 * The control socket carries single bytes. To the program: SANDBOX_GO (once, then the guest is entered; and
 * after each piece of console). From it: SANDBOX_READY (once, when nothing of the set-up can fail any more: a
 * guest cannot take it back; two more bytes tell which layers stand), SANDBOX_EVENT (look at the event). The
 * end of file on either side is the end of the other.
 */
#ifndef TENDER_SANDBOX_CONFIG_H
#define TENDER_SANDBOX_CONFIG_H

#include <limits.h>

#include "device_ops.h"
#include "guest_memory.h"
#include "layers.h"
#include "output.h"
#include "vm.h"

#include "fds.h"

#define SANDBOX_SHARED_OFFSET  0x0000u
#define SANDBOX_CONFIG_OFFSET  0x1000u
#define SANDBOX_BOOT_OFFSET    0x5000u
#define SANDBOX_CONSOLE_OFFSET 0x9000u
#define SANDBOX_VM_BYTES       (SANDBOX_CONSOLE_OFFSET + CONSOLE_PIECE_MAX)

/* Beside the program's steps: the host's side says that of a program that was ended. */
#define SANDBOX_STEP_OUTER_FILTER 6

/* The signals that the program handles whoever observes it. */
#define SANDBOX_FAULTS SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS

#define SANDBOX_GO    'g'
#define SANDBOX_READY 'r'
#define SANDBOX_EVENT 'e'

/* What the program alone knows. It says so behind SANDBOX_READY, in the same write(): before the guest's
 * first instruction, and so before the guest could say anything. */
#define ISOLATION_OF_THE_PROGRAM (ISOLATION_LANDLOCK | ISOLATION_SECCOMP_FILTER | ISOLATION_CAPABILITIES)

struct sandbox_ready {
    uint8_t word;      /* SANDBOX_READY */
    uint8_t layers[2]; /* enum isolation_layer, the low byte first */
};

/*
 * For a program without an observer: the native command executes it in its own process, and it tells its end
 * itself (program/alone.c). All zeros: there is an observer.
 */
struct sandbox_alone {
    uint32_t wanted;
    uint32_t hints;    /* ways out are said */
    uint32_t required; /* isolation layers without which no guest is run, */
    uint32_t layers;   /* and those that stand already */
    uint32_t deaf_to_interrupts;
    uint64_t mask;         /* the signals that whoever started the command has blocked */
    char program[64];      /* whom lines begin with */
    char time_over[96];    /* the line of a time limit's end; empty: there is none */
    struct output errors;  /* stderr; `fd` is SANDBOX_FD_STDERR whether there is one or not */
    struct output report;  /* `fd` is SANDBOX_FD_REPORT, or -1: no report is wanted */
    char report_name[512]; /* for a message where it cannot be written; empty: nothing is said */
    char image[PATH_MAX];  /* its name as given */
    uint64_t start_ns;     /* the command's begin, and the process's */
    uint64_t created_ns;
};

/* Of a device, whose type is in the table. */
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
    uint64_t rip, rsp, rdi; /* of the start state: the others are 0, the system's are as emulate.h has them */
    uint64_t mem_bytes;
    uint64_t template_bytes;
    gpa_t small_pages_end;   /* guest_small_pages_end() */
    uint64_t file_bytes_max; /* RLIMIT_FSIZE; UINT64_MAX: none */
    uint32_t guard_disks;    /* that limit is not enough (disk_guard.h) */
    uint32_t kick_signal;
    uint32_t extensions; /* TENDER_FEATURE_... that the guest was granted */
    uint32_t device_end;
    struct vm_console console; /* its descriptor, and the devices', are another's: fds.h */
    uint32_t ends_at_once;     /* nobody looks into its memory when it has reported its end */
    uint32_t range_count;
    _Atomic uint32_t
        prepared; /* by the program: memory is what the guest will find; pairs with sandbox_read() */
    struct sandbox_alone alone;
    struct guest_range ranges[GUEST_RANGES_MAX];
    struct vm_device devices[MFT_MAX_ENTRIES];
};

_Static_assert(sizeof(struct vm_shared) <= SANDBOX_CONFIG_OFFSET, "the shared page is one page");
_Static_assert(sizeof(struct sandbox_config) <= SANDBOX_BOOT_OFFSET - SANDBOX_CONFIG_OFFSET, "config fits");

#endif
