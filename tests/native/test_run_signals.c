/*
 * Signals of this process while a run unblocks them (run_signals.h), without KVM: one byte takes
 * the place of kvm_run.immediate_exit. Each handler is still called, the byte is set, and the
 * wait's descriptor is readable. The handlers of before the run are back after it. Prints one TAP
 * line for each check and exits with 1 if one fails.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "holds.h"
#include "run_signals.h"
#include "runner.h"

#define LIMIT_MS 10000
#define STORM    20000

static struct vm vm;
static uint8_t *word; /* shared with forked children, as kvm_run is */
static atomic_uint calls;
static sigset_t saved;

static void count(int number)
{
    (void)number;
    atomic_fetch_add(&calls, 1);
}

static void count_with_information(int number, siginfo_t *info, void *frame)
{
    if (number == SIGUSR2 && info->si_pid == getpid() && frame)
        atomic_fetch_add(&calls, 1);
}

static void handle(int number, void (*handler)(int))
{
    struct sigaction action = {.sa_handler = handler};
    sigemptyset(&action.sa_mask);
    sigaction(number, &action, NULL);
}

static void (*handler_of(int number))(int)
{
    struct sigaction now;
    sigaction(number, NULL, &now);
    return now.sa_handler;
}

static bool wait_is_ended(int limit_ms)
{
    struct pollfd stop = {vm.stop_fd, POLLIN, 0};
    int ready;
    while ((ready = poll(&stop, 1, limit_ms)) < 0 && errno == EINTR)
        ; /* interrupted by the signal itself */
    return ready == 1 && *word;
}

static bool enter(void)
{
    *word = 0;
    atomic_store(&calls, 0);
    vm_enter(&vm, &saved);
    return run_signals_let_in(&vm);
}

static void leave(void)
{
    run_signals_hold(&vm);
    vm_leave(&vm, &saved);
}

static void test_a_handler_is_called_and_ends_the_wait(void)
{
    handle(SIGUSR1, count);
    HOLDS(enter());
    HOLDS(handler_of(SIGUSR1) != count);
    HOLDS(!wait_is_ended(0));
    raise(SIGUSR1);
    HOLDS(atomic_load(&calls) == 1 && wait_is_ended(0));
    leave();
    HOLDS(handler_of(SIGUSR1) == count);
    struct pollfd stop = {vm.stop_fd, POLLIN, 0};
    HOLDS(poll(&stop, 1, 0) == 0); /* the signal does not end the next wait */
    raise(SIGUSR1);
    HOLDS(atomic_load(&calls) == 2);
}

static void test_a_handler_gets_the_kernels_information(void)
{
    struct sigaction action = {.sa_sigaction = count_with_information, .sa_flags = SA_SIGINFO};
    sigemptyset(&action.sa_mask);
    sigaction(SIGUSR2, &action, NULL);
    HOLDS(enter());
    kill(getpid(), SIGUSR2);
    HOLDS(atomic_load(&calls) == 1 && wait_is_ended(0));
    leave();
    struct sigaction now;
    sigaction(SIGUSR2, NULL, &now);
    HOLDS(now.sa_sigaction == count_with_information && now.sa_flags & SA_SIGINFO);
    handle(SIGUSR2, SIG_DFL);
}

static void test_a_signal_pending_before_the_run_ends_its_first_wait(void)
{
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    *word = 0;
    atomic_store(&calls, 0);
    vm_enter(&vm, &saved);
    raise(SIGUSR1); /* blocked: pending */
    HOLDS(atomic_load(&calls) == 0);
    HOLDS(run_signals_let_in(&vm));
    HOLDS(atomic_load(&calls) == 1 && wait_is_ended(0));
    leave();
}

static void test_blocked_signals_and_default_actions_stay_as_they_were(void)
{
    sigset_t usr1, pending;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &usr1, NULL);
    handle(SIGWINCH, SIG_IGN);
    HOLDS(enter());
    HOLDS(handler_of(SIGTERM) == SIG_DFL && handler_of(SIGWINCH) == SIG_IGN && handler_of(SIGUSR1) == count);
    raise(SIGUSR1);
    raise(SIGWINCH);
    sigpending(&pending);
    HOLDS(atomic_load(&calls) == 0 && !wait_is_ended(0) && sigismember(&pending, SIGUSR1) == 1);
    raise(SIGPIPE); /* it would kill the process, so it is blocked */
    sigpending(&pending);
    HOLDS(sigismember(&pending, SIGPIPE) == 1);
    sigset_t pipe_set;
    sigemptyset(&pipe_set);
    sigaddset(&pipe_set, SIGPIPE);
    int number;
    sigwait(&pipe_set, &number);
    leave();
    pthread_sigmask(SIG_UNBLOCK, &usr1, NULL);
    HOLDS(atomic_load(&calls) == 1);
}

static void test_a_handler_that_is_changed_meanwhile_stays_changed(void)
{
    HOLDS(enter());
    handle(SIGUSR1, SIG_IGN);
    leave();
    HOLDS(handler_of(SIGUSR1) == SIG_IGN);
    handle(SIGUSR1, count);
}

static void *raise_here(void *number)
{
    pthread_kill(pthread_self(), (int)(intptr_t)number);
    return NULL;
}

/* The kernel gives a process's signal to any thread that accepts it. It takes another thread if this
 * one blocks the signal or is busy. */
static void test_a_signal_that_another_thread_took_ends_the_wait_too(void)
{
    pthread_t other;
    HOLDS(enter());
    HOLDS(pthread_create(&other, NULL, raise_here, (void *)(intptr_t)SIGUSR1) == 0);
    HOLDS(wait_is_ended(LIMIT_MS));
    pthread_join(other, NULL);
    HOLDS(atomic_load(&calls) == 1);
    leave();
    HOLDS(pthread_create(&other, NULL, raise_here, (void *)(intptr_t)SIGUSR1) == 0);
    pthread_join(other, NULL);
    HOLDS(atomic_load(&calls) == 2);
}

static void *run_elsewhere(void *answer)
{
    const bool let_in = enter();
    if (let_in) {
        vm_stop(&vm); /* kicks this thread */
        raise(SIGUSR1);
        *(int *)answer = 1 + (*word == 1) + (atomic_load(&calls) == 1) + (handler_of(SIGUSR1) == count);
        run_signals_hold(&vm);
    }
    vm_leave(&vm, &saved);
    return NULL;
}

static void test_another_thread_unblocks_signals_only_if_none_may_end_its_run(void)
{
    pthread_t other;
    int answer = 0;
    pthread_create(&other, NULL, run_elsewhere, &answer);
    pthread_join(other, NULL);
    HOLDS(answer == 0);
    runner_of(&vm)->signals_elsewhere = true;
    pthread_create(&other, NULL, run_elsewhere, &answer);
    pthread_join(other, NULL);
    HOLDS(answer == 4);
    HOLDS(vm_reset(&vm) == 0 && !runner_of(&vm)->signals_elsewhere);
}

static void test_a_kick_signal_that_another_user_handles_is_left_alone(void)
{
    const int kick = VM_KICK_SIGNAL;
    void (*const ours)(int) = handler_of(kick);
    handle(kick, count);
    HOLDS(!enter());
    HOLDS(handler_of(kick) == count && handler_of(SIGUSR1) == count);
    vm_leave(&vm, &saved);
    handle(kick, SIG_IGN);
    HOLDS(!enter());
    vm_leave(&vm, &saved);
    handle(kick, ours);
}

static void test_a_stop_is_not_lost_with_what_a_signal_wrote(void)
{
    HOLDS(enter());
    raise(SIGUSR1);
    vm_stop(&vm);
    leave();
    struct pollfd stop = {vm.stop_fd, POLLIN, 0};
    HOLDS(poll(&stop, 1, 0) == 1 && atomic_load(&vm.stop_requested));
    HOLDS(vm_reset(&vm) == 0 && poll(&stop, 1, 0) == 0);
    kill(getpid(), VM_KICK_SIGNAL); /* outside of a run: no effect */
    HOLDS(*word);
}

static void test_a_forked_child_does_not_touch_its_parents_run(void)
{
    HOLDS(enter());
    pid_t child = fork();
    if (child == 0) {
        raise(SIGUSR1);
        raise(VM_KICK_SIGNAL);
        _exit(atomic_load(&calls) == 1 ? 0 : 1);
    }
    int status = -1;
    HOLDS(waitpid(child, &status, 0) == child && status == 0);
    HOLDS(!*word);
    leave();
}

static atomic_uint round_now;

static void *send_one_a_round(void *unused)
{
    (void)unused;
    unsigned seed = 1;
    for (unsigned round = 1; round <= STORM; round++, seed = seed * 1103515245u + 12345u) {
        while (atomic_load(&round_now) != round)
            sched_yield();
        for (unsigned i = 0; i < seed >> 18; i++)
            __asm__ volatile("" ::: "memory");
        kill(getpid(), SIGUSR1);
    }
    return NULL;
}

/* One signal per round, which may come at any moment of entering, unblocking, waiting, blocking and
 * leaving. If it comes after the entering it ends the wait, which nothing else would end. */
static void test_no_signal_is_lost_at_any_moment(void)
{
    pthread_t other;
    sigset_t usr1, before_it;
    unsigned lost = 0, refused = 0, waited = 0, unheard = 0;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &usr1, &before_it);
    pthread_create(&other, NULL, send_one_a_round, NULL); /* which blocks the signal itself */
    pthread_sigmask(SIG_SETMASK, &before_it, NULL);
    for (unsigned round = 1; round <= STORM && !lost; round++) {
        const struct timespec limit = {LIMIT_MS / 1000, 0};
        struct pollfd stop = {vm.stop_fd, POLLIN, 0};
        *word = 0;
        atomic_store(&calls, 0);
        atomic_store(&round_now, round);
        vm_enter(&vm, &saved);
        const bool came_before = atomic_load(&calls);
        refused += !run_signals_let_in(&vm);
        if (!came_before && round % 2) {
            waited++;
            lost += ppoll(&stop, 1, &limit, &vm.poll_mask) == 0 || !*word;
        }
        leave();
        for (unsigned ms = 0; !atomic_load(&calls) && ms < LIMIT_MS; ms++) {
            const struct timespec pause = {0, 1000000};
            nanosleep(&pause, NULL);
        }
        unheard += atomic_load(&calls) != 1;
    }
    atomic_store(&round_now, STORM);
    HOLDS(refused == 0);
    HOLDS(lost == 0 && unheard == 0);
    HOLDS(waited > STORM / 10);
    if (!lost)
        pthread_join(other, NULL);
}

int main(void)
{
    word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (word == MAP_FAILED || vm_init(&vm) < 0)
        return 1;
    runner_of(&vm)->exit_at_once = word;
    test_a_handler_is_called_and_ends_the_wait();
    test_a_handler_gets_the_kernels_information();
    test_a_signal_pending_before_the_run_ends_its_first_wait();
    test_blocked_signals_and_default_actions_stay_as_they_were();
    test_a_handler_that_is_changed_meanwhile_stays_changed();
    test_a_signal_that_another_thread_took_ends_the_wait_too();
    test_another_thread_unblocks_signals_only_if_none_may_end_its_run();
    test_a_kick_signal_that_another_user_handles_is_left_alone();
    test_a_stop_is_not_lost_with_what_a_signal_wrote();
    test_a_forked_child_does_not_touch_its_parents_run();
    test_no_signal_is_lost_at_any_moment();
    return claims_end();
}
