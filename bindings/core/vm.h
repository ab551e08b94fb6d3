/*
 * One VM as the hypercall handlers see it: its memory, its devices, its console, and the request to stop.
 *
 * No KVM, no Python, no allocation on the hot path, no process-wide state. A backend (machine/kvm/run_kvm.c,
 * or
 * machine/sandbox/program) decodes an exit and calls hypercall(); a handler handles it or fills a vm_event.
 *
 * Threads: one thread at a time is inside a backend's run function. vm_stop() may come from any other. A kind
 * of device may have a thread of its own (devices/net/ring.h).
 */
#ifndef TENDER_VM_H
#define TENDER_VM_H

#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
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
    CONTINUE, /* handled: back into the guest */
    EXIT,     /* vm_shared.event says why */
};

/*
 * A kind of device keeps its state in the VM, of each device and of all its devices together: plain data,
 * which only the kind's own folder looks into. It has a fixed size, so that a VM is one piece of memory, and
 * a handler finds the state at an address that the compiler knows.
 */
#define DEVICE_OWN_BYTES 120 /* with what stands before it 128, by which a handle is multiplied in one step */
#define KIND_OWN_BYTES   768

struct vm_device {
    uint32_t type; /* MFT_...; 0: nothing attached */
    int fd;
    _Alignas(8) uint8_t own[DEVICE_OWN_BYTES];
};

/* Where the guest's output goes. Every guest has one console, which no manifest declares. */
struct vm_console {
    int32_t fd;     /* or CONSOLE_DISCARD, CONSOLE_PYTHON */
    uint32_t chunk; /* bytes of one write, at most */
    bool nowait;    /* pwritev2(RWF_NOWAIT) is worth trying */
    bool is_socket;
    bool own; /* `fd` is the VM's: a terminal that was opened once more */
};

/* A hypercall that made the loop exit before it was handled (a signal, or a console write too large for one
 * event). */
struct vm_resume {
    uint32_t number; /* 0: none */
    gpa_t gpa;
    _Alignas(8) uint8_t structure[48]; /* as it was copied first: guest memory may have changed, by a frame */
    bool again;                        /* the handler wants to be called again with the same structure */
    uint64_t bytes_done;               /* of a console write or of a disk's transfer: moved already */
    uint64_t poll_deadline_ns;         /* 0: not armed */
    uint32_t batch_done;               /* requests or frames of a batch that have their answer */
};

#define RUNNER_OWN_BYTES 256

struct vm {
    struct guest_memory memory;   /* first: its address is the VM's, which handlers have in a register */
    const struct vm_event *event; /* what Python believes: shared->event, or a backend's checked copy of it */
    struct vm_shared *shared;     /* the VM's own, or a page shared with the process that runs the guest */
    struct vm_device devices[MFT_MAX_ENTRIES];
    uint32_t device_end;                     /* one past the highest attached handle */
    uint32_t count_of[DEVICE_TYPES];         /* attached ones, by type */
    uint32_t extensions;                     /* TENDER_FEATURE_... that the guest was granted */
    enum verdict (*doorbell)(struct vm *vm); /* of a device with a port to kick; NULL: there is none */
    /* A backend's, for the first call of a device whose file may become memory; NULL: done, or not wanted. */
    void (*map_devices)(struct vm *vm);
    bool devices_mapped; /* map_devices() has been called */
    struct vm_console console;
    struct vm_resume resume;
    _Alignas(16) uint8_t kinds[DEVICE_TYPES][KIND_OWN_BYTES];

    struct vm_event fault; /* what a device's thread has found, and the run is to end with: */
    atomic_bool has_fault; /* set behind it, and the guest stopped then */

    int stop_fd; /* eventfd: wakes ppoll */
    atomic_bool stop_requested;
    sigset_t poll_mask; /* in force inside ppoll */
    /* A holder's: the thread that runs the guest comes out of it soon. NULL: none is told. */
    void (*kick)(struct vm *vm);
    _Alignas(16) uint8_t runner[RUNNER_OWN_BYTES]; /* a holder's own: machine/runner.h */
    struct vm_shared own_shared; /* where `shared` points unless a backend puts it elsewhere */
};

/* Asks a running VM to stop, and one that is not running not to start. Any thread, any time, no waiting. */
void vm_stop(struct vm *vm);

/* Whether a run function that came back with this event is to be called no more. */
static inline bool event_ends_run(uint32_t kind)
{
    return kind != EVENT_INTERRUPTED && kind != EVENT_CONSOLE && kind != EVENT_NETWORK;
}

/* How large those files may become that the VM writes; UINT64_MAX: its console is a file, which grows. */
uint64_t vm_largest_file(const struct vm *vm);

uint64_t monotonic_ns(void);

#endif
