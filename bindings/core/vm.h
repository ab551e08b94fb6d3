/*
 * One VM as the hypercall handlers see it: its memory, its devices, its console, and the request to
 * stop.
 *
 * There is no KVM, no Python, no allocation on the hot path and no process-wide state here. A
 * backend (machine/kvm/run_kvm.c or machine/sandbox/program) decodes an exit and calls hypercall().
 * A handler handles it or fills a vm_event.
 *
 * Threads: only one thread at a time is inside a backend's run function. Any thread may call
 * vm_stop(). A kind of device may have a thread of its own (devices/net/ring.h).
 */
#ifndef TENDER_VM_H
#define TENDER_VM_H

#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/types.h>

#include "guest_memory.h"
#include "vm_types.h"

/* One past the highest type in the table. */
union device_types {
#define DEVICE(type, name, word) char name[(type) + 1];
#include "devices.def"
};
enum { DEVICE_TYPES = sizeof(union device_types) };

enum verdict {
    CONTINUE, /* handled: enter the guest again */
    EXIT,     /* exit the run loop; vm_shared.event contains the reason */
};

/*
 * A kind of device keeps its state in the VM: one part for each device, and one for all devices of
 * the kind. It is plain data, and only the kind's own folder uses it. Its size is fixed, so that a
 * VM is one piece of memory and a handler finds the state at an offset that the compiler knows.
 */
#define DEVICE_OWN_BYTES 120 /* makes struct vm_device 128 bytes, so that an index is a shift */
#define KIND_OWN_BYTES   768

struct vm_device {
    uint32_t type; /* MFT_...; 0: nothing attached */
    int fd;
    _Alignas(8) uint8_t own[DEVICE_OWN_BYTES];
};

/* Where the guest's output goes. Every guest has exactly one console. A manifest does not declare it. */
struct vm_console {
    int32_t fd;     /* or CONSOLE_DISCARD, CONSOLE_PYTHON */
    uint32_t chunk; /* maximum bytes of one write */
    bool nowait;    /* pwritev2(RWF_NOWAIT) is worth trying */
    bool is_socket;
    bool own; /* the VM owns `fd`: it is a terminal that was opened again */
};

/*
 * A hypercall that made the run loop exit before it was completely handled: because of a signal, or
 * because a console write is too large for one event.
 */
struct vm_resume {
    uint32_t number; /* 0: none */
    gpa_t gpa;
    _Alignas(8) uint8_t structure[48]; /* the first copy; a received frame may have changed guest memory */
    bool again;                        /* the handler wants to be called again with the same structure */
    uint64_t bytes_done;               /* bytes of a console write or a disk transfer that are done */
    uint64_t poll_deadline_ns;         /* 0: there is no deadline */
    uint32_t batch_done;               /* requests or frames of a batch that have an answer */
    bool is_traced;                    /* its record is not complete (trace.h) */
};

#define RUNNER_OWN_BYTES 256

struct vm {
    struct guest_memory memory;   /* first: it has the address of the VM, which handlers have in a register */
    const struct vm_event *event; /* the event that Python uses: shared->event, or a checked copy of it */
    struct vm_shared *shared;     /* the VM's own, or a page shared with the process that runs the guest */
    struct vm_device devices[MFT_MAX_ENTRIES];
    uint32_t device_end;                     /* one past the highest attached handle */
    uint32_t count_of[DEVICE_TYPES];         /* the number of attached devices, by type */
    uint32_t extensions;                     /* the TENDER_FEATURE_... bits that the guest was granted */
    enum verdict (*doorbell)(struct vm *vm); /* serves a write to a device's kick port; NULL: there is none */
    /*
     * Set by a backend. The first call of a device whose file can be mapped calls it. NULL: it was
     * called, or mapping is not wanted.
     */
    void (*map_devices)(struct vm *vm);
    bool devices_mapped; /* map_devices() has been called */
    struct vm_console console;
    struct vm_resume resume;
    struct trace_record *trace; /* the ring of the last hypercalls, TRACE_RECORDS; NULL: there is none yet */
    _Alignas(16) uint8_t kinds[DEVICE_TYPES][KIND_OWN_BYTES];

    struct vm_event fault; /* found by a device's thread; the run must end with it */
    atomic_bool has_fault; /* set after `fault`; then the guest is stopped */

    int stop_fd; /* eventfd: wakes ppoll */
    atomic_bool stop_requested;
    sigset_t poll_mask; /* in force inside ppoll */
    /*
     * Set by the holder of the VM. It makes the thread that runs the guest exit from the guest
     * soon. NULL: no thread has to be kicked.
     */
    void (*kick)(struct vm *vm);
    _Alignas(16) uint8_t runner[RUNNER_OWN_BYTES]; /* for the holder of the VM: machine/runner.h */
    struct vm_shared own_shared; /* `shared` points here, unless a backend puts it elsewhere */
};

/*
 * Asks a running VM to stop. A VM that does not run will not start. May be called from any thread
 * at any time, and does not wait.
 */
void vm_stop(struct vm *vm);

/* Whether the run function must not be called again after this event. */
static inline bool event_ends_run(uint32_t kind)
{
    return kind != EVENT_INTERRUPTED && kind != EVENT_CONSOLE && kind != EVENT_NETWORK;
}

/*
 * Whether an exit is the first one, or hypercalls are recorded: a backend has another path for these. It is
 * one comparison, of two words at a time.
 */
static inline bool exit_is_noted(const struct vm_shared *shared)
{
    uint64_t both;
    _Static_assert(offsetof(struct vm_shared, trace_on) == offsetof(struct vm_shared, first_exit_seen) + 4,
                   "");
    memcpy(&both, (const uint8_t *)shared + offsetof(struct vm_shared, first_exit_seen), sizeof both);
    return both != 1; /* first_exit_seen is 1, and trace_on is 0 */
}

/*
 * Returns the largest size that a file written by the VM may have. UINT64_MAX: its console is a
 * file, which grows.
 */
uint64_t vm_largest_file(const struct vm *vm);

uint64_t monotonic_ns(void);

/* Off the hot path. */
static inline void note_first_exit(struct vm_shared *shared)
{
    if (shared->first_exit_seen)
        return;
    shared->timeline.first_exit = monotonic_ns();
    shared->first_exit_seen = 1;
}

#endif
