/*
 * A VM in the process that holds it: made, entered by a thread, kicked out of the guest, left, reset,
 * released.
 *
 * Signals: while it runs, that thread blocks all asynchronous signals, and lets them in only where it waits
 * (ppoll, and KVM_RUN by KVM_SET_SIGNAL_MASK), so none can fall between a check and a wait. A wait that ends
 * by a signal returns EVENT_INTERRUPTED; the caller's handlers run once the mask is back. A guest that exits
 * often pays for that mask at each exit: for it they are let in, in another way (kvm/run_signals.h).
 *
 * Of held-back ones the kick is let into KVM_RUN alone, which puts the mask back before the signal could be
 * delivered, so that it needs no handler. ppoll delivers first and puts the mask back behind it: there the
 * kick would take its default action and end the process, and there stop_fd does its work.
 *
 * A process whose handlers are all its own (the launcher) holds nothing back: see signals_at_will.
 */
#ifndef TENDER_RUNNER_H
#define TENDER_RUNNER_H

#include <pthread.h>

#include "vm.h"

struct runner {
    pthread_mutex_t lock;  /* guards `thread`: a kick never reaches one that has left */
    pid_t process;         /* that made this VM, and alone may run it */
    pid_t thread;          /* inside the run function, 0: none */
    uint8_t *exit_at_once; /* a backend's, that a kick sets first: kvm_run.immediate_exit; NULL: none */
    /* This process's handlers end KVM_RUN wherever they find it (kvm_run.immediate_exit), the kick's too:
     * none is held back, which saves KVM two changes of the mask an exit. */
    bool signals_at_will;
    /* The thread that runs it is one of ours: what a handler does is for another thread to see, and none is
     * to end this run. */
    bool signals_elsewhere;
    bool signals_let_in_next; /* by the next call of the run function, from its beginning */
    sigset_t run_mask;        /* the caller's mask without the kick: in force inside KVM_RUN */
    /* and vm.poll_mask: the caller's with the kick */
};
_Static_assert(sizeof(struct runner) <= RUNNER_OWN_BYTES, "it fits");

static inline struct runner *runner_of(const struct vm *vm)
{
    return (void *)(uintptr_t)vm->runner;
}

/* The sandbox program fills in a struct vm of its own, without these. `vm` is zeros: most of it stays so, in
 * pages that nobody touches. */
int vm_init(struct vm *vm);
void vm_release(struct vm *vm);

/* Back to before the first run, of a VM whose memory is kept: what was counted, the event, a stop that was
 * asked for, memory as the image has it (boot info apart), no frame that came by an interface. Devices and
 * console stay, and what is known of a disk's pages: they are the same. No thread is inside a run function,
 * and none asks for a stop. */
int vm_reset(struct vm *vm);

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

#endif
