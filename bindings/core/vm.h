/*
 * One VM as the hypercall handlers see it: its memory, its devices, its console, and the request to stop.
 *
 * No KVM, no Python, no allocation on the hot road, no process-wide state. A door (machine/kvm/run_kvm.c, or
 * machine/sandbox/program) decodes an exit and calls hypercall(); a handler settles it or leaves a vm_event.
 *
 * Threads: one thread at a time is inside a door's run function. vm_stop() may come from any other. A kind of
 * device may have a thread of its own (devices/net/ring.h).
 *
 * Signals: while it runs, that thread blocks all asynchronous signals, and lets them in only where it waits
 * (ppoll, and KVM_RUN by KVM_SET_SIGNAL_MASK), so none can fall between a check and a wait. A wait that ends
 * by a signal returns EVENT_INTERRUPTED; the caller's handlers run once the mask is back. A guest that exits
 * often pays for that mask at each exit: for it they are let in, in another way (machine/kvm/run_signals.h).
 *
 * Of held-back ones the kick is let into KVM_RUN alone, which puts the mask back before the signal could be
 * delivered, so that it needs no handler. ppoll delivers first and puts the mask back behind it: there the
 * kick would take its default action and end the process, and there stop_fd does its work.
 *
 * A process whose handlers are all its own (the launcher) holds nothing back: see signals_at_will.
 */
#ifndef TENDER_VM_H
#define TENDER_VM_H

#include <poll.h>
#include <pthread.h>
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
    CONTINUE, /* settled: back into the guest */
    LEAVE,    /* vm_shared.event says why */
};

/*
 * A kind of device keeps its state in the VM, of each device and of all its devices together: plain data,
 * which only the kind's own folder looks into. It has a fixed room, so that a VM is one piece of memory, and
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

/* A hypercall that left before it was settled (a signal, or a console write too large for one event). */
struct vm_resume {
    uint32_t number; /* 0: none */
    gpa_t gpa;
    _Alignas(8) uint8_t structure[48]; /* as it was copied first: guest memory may have changed, by a frame */
    bool again;                        /* the handler wants to be called again with the same structure */
    uint64_t bytes_done;               /* of a console write or of a disk's transfer: moved already */
    uint64_t poll_deadline_ns;         /* 0: not armed */
    uint32_t batch_done;               /* requests or frames of a batch that have their answer */
};

struct vm {
    struct guest_memory memory;   /* first: its address is the VM's, which handlers have in a register */
    const struct vm_event *event; /* what Python believes: shared->event, or a door's checked copy of it */
    struct vm_shared *shared;     /* the VM's own, or a page shared with the process that runs the guest */
    struct vm_device devices[MFT_MAX_ENTRIES];
    uint32_t device_end;                     /* one past the highest attached handle */
    uint32_t count_of[DEVICE_TYPES];         /* attached ones, by type */
    uint32_t extensions;                     /* TENDER_FEATURE_... that the guest was granted */
    enum verdict (*doorbell)(struct vm *vm); /* of a device with a port to kick; NULL: there is none */
    /* A door's, for the first call of a device whose file may become memory; NULL: done, or not wanted. */
    void (*map_devices)(struct vm *vm);
    bool devices_mapped; /* map_devices() has been called */
    struct vm_console console;
    struct vm_resume resume;
    _Alignas(16) uint8_t kinds[DEVICE_TYPES][KIND_OWN_BYTES];

    struct vm_event fault; /* what a device's thread has found, and the run is to end with: */
    atomic_bool has_fault; /* set behind it, and the guest stopped then */

    int stop_fd; /* eventfd: wakes ppoll */
    atomic_bool stop_requested;
    pthread_mutex_t runner_lock; /* guards runner: a kick never reaches a thread that has left */
    pid_t process;               /* that made this VM, and alone may run it */
    pid_t runner;                /* thread inside the run function, 0: none */
    uint8_t *
        leave_at_once; /* a door's, that vm_stop() sets before it kicks: kvm_run.immediate_exit; NULL: none */
    /* This process's handlers end KVM_RUN wherever they find it (kvm_run.immediate_exit), the kick's too:
     * none is held back, which saves KVM two changes of the mask an exit. */
    bool signals_at_will;
    /* The thread that runs it is one of ours: what a handler does is for another thread to see, and none is
     * to end this run. */
    bool signals_elsewhere;
    bool signals_let_in_next;    /* by the next call of the run function, from its beginning */
    sigset_t run_mask;           /* the caller's mask without the kick: in force inside KVM_RUN */
    sigset_t poll_mask;          /* the caller's mask with the kick: in force inside ppoll */
    struct vm_shared own_shared; /* where `shared` points unless a door puts it elsewhere */
};

/* For the process that holds the VM (vm.c); the sandbox program fills in a struct vm of its own. `vm` is
 * zeros: most of it stays so, in pages that nobody touches. */
int vm_init(struct vm *vm);
void vm_release(struct vm *vm);

/* Back to before the first run, of a VM whose memory is kept: what was counted, the event, a stop that was
 * asked for, memory as the image has it (boot info apart), no frame that came by an interface. Devices and
 * console stay, and what is known of a disk's pages: they are the same. No thread is inside a run function,
 * and none asks for a stop. */
int vm_reset(struct vm *vm);

/* Asks a running VM to stop, and one that is not running not to start. Any thread, any time, no waiting. */
void vm_stop(struct vm *vm);

/* Enter and leave the run function: blocks signals and names this thread as the one to kick, and back. */
void vm_enter(struct vm *vm, sigset_t *saved);
void vm_leave(struct vm *vm, const sigset_t *saved);

/* The same ahead of it, for a caller that looks what signals have left for it: it holds them back, looks, and
 * runs; what comes from the first on ends the run's first wait. Of this thread; releasing what is not held
 * does nothing. */
void vm_hold_signals(void);
void vm_release_signals(void);

/*
 * The signal a runner is kicked with. Blocked outside of waits it needs no handler and runs none.
 *
 * SIGURG has the same number with every C library, and by default it is ignored. It is no real-time signal:
 * the kernel refuses to send one of those to a thread where the user's signals queued are at
 * RLIMIT_SIGPENDING.
 */
#define VM_KICK_SIGNAL SIGURG

/* Whether a run function that came back with this event is to be called no more. */
static inline bool event_ends_run(uint32_t kind)
{
    return kind != EVENT_INTERRUPTED && kind != EVENT_CONSOLE && kind != EVENT_NETWORK;
}

/* How large those files may become that the VM writes; UINT64_MAX: its console is a file, which grows. */
uint64_t vm_largest_file(const struct vm *vm);

uint64_t monotonic_ns(void);

#endif
