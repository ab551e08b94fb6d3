/*
 * The counters, events and other data of one VM that Python reads through cffi
 * (bindings/python/native.h).
 */
#ifndef TENDER_VM_TYPES_H
#define TENDER_VM_TYPES_H

#include "tender_abi.h"

/* <native:types> */

#define CONSOLE_DISCARD   (-1)
#define CONSOLE_PYTHON    (-2)     /* each write comes back as EVENT_CONSOLE */
#define CONSOLE_PIECE_MAX 0x100000 /* bytes of one EVENT_CONSOLE */

#define GUEST_RANGES_MAX 128 /* pieces of memory with rights of their own: an image's segments */

#define SEGMENT_EXEC  1 /* these rights have the values of ELF's PF_X, PF_W, PF_R */
#define SEGMENT_WRITE 2
#define SEGMENT_READ  4

struct vm_counters {
    uint64_t exits;
    uint64_t hypercalls[32]; /* by number */
    uint64_t console_bytes;
    uint64_t console_lost_bytes;
    uint64_t net_rx_packets;
    uint64_t net_rx_bytes;
    uint64_t net_tx_packets;
    uint64_t net_tx_bytes;
    uint64_t net_tx_drops;
    uint64_t net_rx_errors;
    uint64_t net_rx_drops;   /* too long for the buffer, empty, or with an offload that was not asked for */
    uint64_t net_ring_kicks; /* kicks by the guest, when it posted entries that no thread was waiting for */
    uint64_t net_batches;
    uint64_t net_detached; /* how often a TAP's interface was deleted */
    uint64_t net_attached; /* how often a descriptor was found attached to a new interface */
    uint64_t block_reads;
    uint64_t block_read_bytes;
    uint64_t block_writes;
    uint64_t block_write_bytes;
    uint64_t block_errors;
    uint64_t block_flushes;
    uint64_t block_batches;
    uint64_t
        trapped_hypercalls; /* the sandbox: hypercalls that came by a signal, not by a patched call site or
                                    the gate */
    uint64_t emulated;      /* the sandbox: other instructions that were emulated */
    uint64_t guest_faults;  /* the sandbox: exceptions delivered to the guest */
};

/* CLOCK_MONOTONIC, ns; 0: not reached */
struct vm_timeline {
    uint64_t first_run;
    uint64_t first_exit;
    uint64_t first_console;
    uint64_t guest_exit;
};

/* Why a run function returned. The fields that are valid for each kind follow it. */
enum vm_event_kind {
    EVENT_NONE = 0,
    EVENT_HALT = 1,              /* status, cookie_valid, trap */
    EVENT_STOPPED = 2,           /* vm_stop() was called */
    EVENT_INTERRUPTED = 3,       /* a signal is pending for this thread: handle it, then run again */
    EVENT_CONSOLE = 4,           /* gpa, len: take the bytes, then run again */
    EVENT_TRANSLATION_FAULT = 5, /* rip */
    EVENT_BAD_PORT = 6,          /* port */
    EVENT_BAD_HYPERCALL = 7,     /* number */
    EVENT_BAD_ACCESS = 8,        /* number, gpa, len */
    EVENT_UNHANDLED_EXIT = 9,    /* detail = KVM's exit reason (the sandbox uses HLT and SHUTDOWN), rip */
    EVENT_ENTRY_FAILURE = 10,    /* detail = hardware reason */
    EVENT_INTERNAL_ERROR = 11,   /* detail = suberror, rip */
    EVENT_HOST_ERROR = 12,       /* os_error */
    /* the sandbox only */
    EVENT_UNSUPPORTED_INSTRUCTION = 13, /* rip, instruction, registers */
    EVENT_FORBIDDEN_SYSCALL = 14,       /* number, detail = AUDIT_ARCH_..., rip, registers */
    EVENT_HANDLER_FAULT =
        15, /* detail = signal, rip: a fault in the handlers' own code, which a guest can jump into */
    EVENT_PROCESS_DIED = 16, /* detail = signal; 0: the process exited with `status` */
    EVENT_SETUP_FAILED = 17, /* number = enum sandbox_step, os_error */
    EVENT_NETWORK = 18,      /* a TAP has no interface: check it (devices/device.h), then run again */
};

/* The registers that an hvt guest can see, in the order of the instruction set's register numbers. */
struct vm_registers {
    uint64_t gpr[16]; /* rax rcx rdx rbx rsp rbp rsi rdi r8 .. r15 */
    uint64_t rip;
    uint64_t rflags;
    uint64_t cr2;
    uint64_t fs_base;
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
    uint32_t registers_valid;
    uint32_t instruction_bytes; /* the number of bytes in `instruction` that were readable at rip */
    uint8_t instruction[16];
    struct vm_registers registers;
};

/* The part of a VM that Python may read at any time and from any thread. */
struct vm_shared {
    struct vm_counters counters;
    struct vm_timeline timeline;
    /* exit_is_noted() reads these two words together. */
    uint32_t first_exit_seen; /* 1: timeline.first_exit is set */
    uint32_t trace_on;        /* set by who wants the last hypercalls recorded: core/trace.h */
    uint64_t registers_until; /* KVM: the guest's registers are wanted at each of this many first exits */
    struct vm_event event;
    struct vm_counters ring_counters; /* the net_ counters of the thread that serves the ring, which may not
                                         be the vCPU's; a reader adds them to `counters` */
    uint32_t held;                    /* set by a debugger while it is attached; else 0 */
    uint32_t told; /* enum vm_told: what the vCPU's thread tells the debugger (KVM only), and the answer */
    uint32_t told_tries;  /* how often it has waited in vain for an answer: the debugger was killed */
    uint64_t trace_head;  /* how many hypercalls were recorded */
    uint64_t trace_limit; /* at this number the recording ends by itself; UINT64_MAX: never */
};

/* vm_shared.told. The debugger answers TOLD_EXIT with one of the first two. The thread waits for that answer
 * as long as TOLD_EXIT is there. */
enum vm_told {
    TOLD_NOTHING = 0, /* the guest goes on */
    TOLD_REFUSED = 1, /* not the debugger's exit; sandbox: nor its trap */
    TOLD_EXIT = 2,    /* KVM_EXIT_HLT, with RIP at the instruction again, or KVM_EXIT_DEBUG */
    TOLD_END = 3,     /* the run has ended with the event in vm_shared */
    TOLD_TAKEN = 4,   /* sandbox: an answer, the trap was a killed debugger's, and the frame is right */
};

/* How the network ring is served, if there is one; devices/net/ring.h. */
enum vm_ring_mode {
    RING_NONE = 0,
    RING_INLINE = 1,   /* by the vCPU's thread, at each kick */
    RING_ADAPTIVE = 2, /* by the vCPU's thread, and by a worker thread while kicks come fast */
    RING_WORKER = 3,   /* by the worker thread, from each kick on */
};

/* </native:types> */

#endif
