/*
 * Signals of a process that is not ours, while one of its threads runs a guest: how one of them ends KVM_RUN
 * without a mask of KVM's own, which would be changed twice an exit.
 *
 * They are let in at any time. So that none falls between a look and KVM_RUN, or a wait, a handler that runs
 * on this thread also sets kvm_run.immediate_exit, and makes stop_fd readable: each handler that the process
 * has is called by one of ours, as long as the run lasts. A signal that another thread took is handed on as a
 * kick. Only the process's first thread is served so: there Python's handlers are waited for, and while it is
 * in here nobody in Python may change them. For a thread whose run no signal is to end (vm.signals_elsewhere)
 * nothing stands before the handlers.
 *
 * What the process does by itself (SIG_DFL, SIG_IGN, what the caller has blocked) stays as it was. SIGPIPE is
 * held back (write_quietly()). The kick's handler stays installed: it does nothing outside of a run.
 */
#ifndef TENDER_RUN_SIGNALS_H
#define TENDER_RUN_SIGNALS_H

#include "vm.h"

/* Inside vm_enter(), with vm->exit_at_once set, on the thread that runs. False: signals stay held back, for
 * this is another thread than the first, or the kick's number is somebody else's. */
bool run_signals_let_in(struct vm *vm);

/* Undoes it; before vm_leave(). Handlers that others have installed meanwhile stay. */
void run_signals_hold(struct vm *vm);

#endif
