/*
 * Signals of a process that is not ours, while one of its threads runs a guest: how a signal ends KVM_RUN
 * without KVM's signal mask, which would be changed twice per exit.
 *
 * Signals are let in at any time. No signal may arrive unnoticed between a check and KVM_RUN, or between a
 * check and a wait. So a handler that runs on this thread also sets kvm_run.immediate_exit and makes stop_fd
 * readable: during the run, each handler of the process is called by one of our handlers. A signal that
 * another thread took is passed on to this thread as a kick. Only the process's first thread is served in
 * this way: Python's handlers run on that thread, and while it is in here no Python code can change them.
 * For a thread whose run no signal may end (runner.signals_elsewhere), the handlers are not wrapped.
 *
 * The default actions of the process (SIG_DFL, SIG_IGN) and the signals that the caller has blocked stay as
 * they were. SIGPIPE is blocked (write_quietly()). The kick's handler stays installed: it does nothing
 * outside of a run.
 */
#ifndef TENDER_RUN_SIGNALS_H
#define TENDER_RUN_SIGNALS_H

#include "vm.h"

/* Called inside vm_enter(), with runner.exit_at_once set, on the thread that runs. False: signals stay
 * blocked, because this is not the first thread, or because the process uses the kick's signal itself. */
bool run_signals_let_in(struct vm *vm);

/* Undoes it; call it before vm_leave(). Handlers that others have installed in the meantime stay. */
void run_signals_hold(struct vm *vm);

#endif
