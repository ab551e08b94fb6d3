/*
 * A VM in the process that holds it: it is made, entered by a thread, kicked out of the guest, left, reset
 * and released.
 *
 * Signals: the thread that runs the VM blocks all asynchronous signals. It lets them in only where it waits:
 * in ppoll, and in KVM_RUN by KVM_SET_SIGNAL_MASK. So no signal can arrive unnoticed between a check and a
 * wait. A wait that a signal interrupts returns EVENT_INTERRUPTED; the caller's handlers run once the mask is
 * restored. A guest that exits often pays for that mask at each exit. For such a guest signals are let in in
 * another way (kvm/run_signals.h).
 *
 * Of the blocked signals, only the kick is let into KVM_RUN. KVM_RUN restores the mask before the signal
 * could be delivered, so the kick needs no handler. ppoll delivers a signal first and restores the mask
 * afterwards: there the kick would reach a handler of the process, or its default action, which ignores
 * it. So ppoll does not let the kick in, and stop_fd ends the wait instead.
 *
 * A process whose handlers are all its own (the launcher) blocks nothing: see signals_at_will.
 */
#ifndef TENDER_RUNNER_H
#define TENDER_RUNNER_H

#include <pthread.h>

#include "vm.h"

struct runner {
    pthread_mutex_t lock;  /* guards `thread`: a kick never reaches a thread that has left */
    pid_t process;         /* the process that made this VM; only this process may run it */
    pid_t thread;          /* the thread inside the run function, 0: none */
    uint8_t *exit_at_once; /* a backend's flag that a kick sets first: kvm_run.immediate_exit; NULL: none */
    /* This process's handlers end KVM_RUN wherever they interrupt it (kvm_run.immediate_exit), and so does
     * the kick's handler. No signal is blocked, which saves KVM two changes of the mask per exit. */
    bool signals_at_will;
    /* The thread that runs the VM is one that we made. Another thread sees the effect of a signal's handler,
     * and no handler may end this run. */
    bool signals_elsewhere;
    bool signals_let_in_next; /* the next call of the run function lets signals in from its beginning */
    sigset_t run_mask;        /* the caller's mask without the kick: in force inside KVM_RUN */
    /* and vm.poll_mask: the caller's mask with the kick */

    /* For a debugger, which reads them from another process (core/debug_note.h). */
    struct vm *next;         /* of vm_list */
    struct vm **link;        /* the pointer to this VM: vm_list, or another VM's `next` */
    struct machine *machine; /* NULL: none was made yet */
    const char *image;       /* the path of its file, from the process's directory; NULL: it has none */
};
_Static_assert(sizeof(struct runner) <= RUNNER_OWN_BYTES, "it fits");

static inline struct runner *runner_of(const struct vm *vm)
{
    return (void *)(uintptr_t)vm->runner;
}

/* The sandbox program does not use these: it fills in a struct vm of its own. `vm` must be zeros: most of it
 * stays zero, in pages that are never touched. */
int vm_init(struct vm *vm);
void vm_release(struct vm *vm);

/*
 * The VMs of this process, for a debugger. It may read the list at any moment, so each change is one store of
 * a pointer. A debugger knows a VM that was removed meanwhile by its `link`, which is then not the pointer by
 * which the debugger came. The callers ensure that one thread at a time changes the list.
 */
extern struct vm *vm_list;
void vm_list_add(struct vm *vm);
void vm_list_remove(struct vm *vm);

/* Returns a VM whose memory is kept to its state before the first run. This resets the counters, the event, a
 * stop request, memory to what the image has (except boot info), and frames that came in by an interface.
 * Devices and console stay, and so does what is known about a disk's pages, because they are the same. No
 * thread may be inside a run function, and no thread may be requesting a stop. */
int vm_reset(struct vm *vm);

/* Enter and leave the run function. vm_enter() blocks signals and makes this thread the one to kick. */
void vm_enter(struct vm *vm, sigset_t *saved);
void vm_leave(struct vm *vm, const sigset_t *saved);

/* Block signals before the run function does, for a caller that first checks what signals have left for it.
 * The caller blocks them, checks, and runs; a signal that arrives after the call of vm_hold_signals() ends
 * the run's first wait. This holds for the calling thread. Releasing signals that are not held does
 * nothing. */
void vm_hold_signals(void);
void vm_release_signals(void);

/*
 * The signal that kicks a runner. It is blocked outside of waits, so it needs no handler and runs none.
 *
 * SIGURG has the same number with every C library, and it is ignored by default. A real-time signal would not
 * do: the kernel refuses to send one to a thread if the user's queued signals have reached
 * RLIMIT_SIGPENDING.
 */
#define VM_KICK_SIGNAL SIGURG

#endif
