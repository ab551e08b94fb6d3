#define _GNU_SOURCE
#include "run_signals.h"
#include "runner.h"

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The kernel calls any handler with three arguments, whether it takes them or not; we do the same. */
typedef void handler_t(int, siginfo_t *, void *);

static struct sigaction before[NSIG];     /* for the first thread: the actions to restore */
static _Atomic(handler_t *) theirs[NSIG]; /* for whichever thread a signal arrives on; never cleared */
static uint64_t wrapped;                  /* one bit per signal, from signal 1 on */
static struct vm *listening;              /* the run on the first thread; only that thread reads it */
static _Atomic(pid_t) listener; /* that thread; 0: it runs no guest. In a fork no thread has this id */

static pid_t this_thread(void)
{
    return (pid_t)syscall(SYS_gettid);
}

/* Called on the first thread, during its run: the next KVM_RUN and the next wait return immediately. */
static void end_the_wait(void)
{
    const uint64_t one = 1;
    __atomic_store_n(runner_of(listening)->exit_at_once, 1, __ATOMIC_SEQ_CST);
    (void)!write(listening->stop_fd, &one, sizeof one);
}

static void on_kick(int number)
{
    const int saved = errno;
    (void)number;
    if (this_thread() == atomic_load(&listener))
        end_the_wait();
    errno = saved;
}

static void on_signal(int number, siginfo_t *info, void *frame)
{
    handler_t *handler = atomic_load(&theirs[number]);
    handler(number, info, frame);
    const int saved = errno;
    const pid_t first = atomic_load(&listener);
    if (first && first == this_thread())
        end_the_wait();
    else if (first) /* the handler may have left work for the first thread: Python's handlers do */
        (void)syscall(SYS_tgkill, getpid(), first, VM_KICK_SIGNAL);
    errno = saved;
}

static bool is_ours(const struct sigaction *action)
{
    return action->sa_flags & SA_SIGINFO && action->sa_sigaction == on_signal;
}

/* Signals that are not wrapped: those that kill the process, and faults, which do not end a wait. */
static bool is_let_alone(int number)
{
    static const int alone[] = {SIGKILL, SIGSTOP, SIGSEGV, SIGBUS,  SIGFPE,
                                SIGILL,  SIGTRAP, SIGSYS,  SIGABRT, SIGPIPE};
    for (size_t i = 0; i < sizeof alone / sizeof *alone; i++)
        if (number == alone[i])
            return true;
    return number == VM_KICK_SIGNAL;
}

static void wrap(const sigset_t *blocked)
{
    for (int number = 1; number < NSIG; number++) {
        struct sigaction now;
        if (is_let_alone(number) || sigismember(blocked, number) == 1 || sigaction(number, NULL, &now) < 0)
            continue; /* libc keeps two for itself */
        const bool plain = !(now.sa_flags & SA_SIGINFO);
        if (is_ours(&now) || (plain && (now.sa_handler == SIG_DFL || now.sa_handler == SIG_IGN)))
            continue;
        before[number] = now;
        atomic_store(&theirs[number], now.sa_sigaction);
        now.sa_sigaction = on_signal;
        now.sa_flags |= SA_SIGINFO;
        if (sigaction(number, &now, NULL) == 0)
            wrapped |= (uint64_t)1 << (number - 1);
    }
}

static void unwrap(void)
{
    for (; wrapped; wrapped &= wrapped - 1) {
        const int number = __builtin_ctzll(wrapped) + 1;
        struct sigaction now;
        if (sigaction(number, NULL, &now) == 0 && is_ours(&now))
            (void)sigaction(number, &before[number], NULL);
    }
}

/* Installs a handler for the kick, which is ignored by default and would then end no wait. False: the process
 * uses the signal itself. */
static bool catch_kicks(void)
{
    struct sigaction now;
    if (sigaction(VM_KICK_SIGNAL, NULL, &now) < 0)
        return false;
    if (!(now.sa_flags & SA_SIGINFO) && now.sa_handler == on_kick)
        return true;
    if (now.sa_flags & SA_SIGINFO || now.sa_handler != SIG_DFL)
        return false;
    struct sigaction ours = {.sa_handler = on_kick, .sa_flags = SA_RESTART | SA_ONSTACK};
    sigemptyset(&ours.sa_mask);
    return sigaction(VM_KICK_SIGNAL, &ours, NULL) == 0;
}

bool run_signals_let_in(struct vm *vm)
{
    const bool first = !runner_of(vm)->signals_elsewhere;
    if ((first && this_thread() != getpid()) || !catch_kicks())
        return false;
    if (first) {
        listening = vm;
        atomic_store(&listener, this_thread());
        wrap(&runner_of(vm)->run_mask);
    }
    sigset_t let_in; /* all signals that the caller had let in, and the kick */
    sigfillset(&let_in);
    for (int number = 1; number < NSIG; number++)
        if (number == SIGPIPE || sigismember(&runner_of(vm)->run_mask, number) == 1)
            sigdelset(&let_in, number);
    sigdelset(&vm->poll_mask, VM_KICK_SIGNAL);
    pthread_sigmask(SIG_UNBLOCK, &let_in, NULL);
    return true;
}

void run_signals_hold(struct vm *vm)
{
    if (runner_of(vm)->signals_elsewhere)
        return;
    atomic_store(&listener, 0);
    unwrap();
    /* What end_the_wait() wrote must not end the next wait. What vm_stop() wrote must. */
    uint64_t written;
    if (!atomic_load(&vm->stop_requested) && read(vm->stop_fd, &written, sizeof written) > 0 &&
        atomic_load(&vm->stop_requested)) {
        const uint64_t one = 1;
        (void)!write(vm->stop_fd, &one, sizeof one);
    }
}
