/*
 * Waits for a tender-sandbox, stops it, reads its memory, and handles its end.
 *
 * Everything that it reports may come from the guest: an event is copied once and checked before it is
 * used. A program that does not obey a stop is killed, because a guest may pretend to be reporting.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "device_ops.h"
#include "hypercall.h"
#include "runner.h"
#include "spawn.h"

#define STOP_GRACE_NS   200000000u
#define PREPARE_NS      2000000000u
#define PREPARE_LOOK_NS 50000
#define REAP_NS         2000000000u
#define REAP_LOOK_NS    10000000
#define NS_PER_S        1000000000u

static void signal_program(const struct sandbox *sandbox, int number)
{
    if (sandbox->pidfd >= 0)
        (void)syscall(SYS_pidfd_send_signal, sandbox->pidfd, number, NULL, 0);
}

static void set_event(struct sandbox *sandbox, enum vm_event_kind kind, uint64_t detail)
{
    sandbox->event = (struct vm_event){.kind = kind, .detail = detail};
}

/* Killed processes that had not ended when the wait was given up: each entry is a pidfd plus one; 0: none. */
#define LEFT_MAX 64
static _Atomic int left_pidfds[LEFT_MAX];

/* True: it is reaped, or it is no longer our child; `error` says which. */
static bool reap_at_once(int pidfd, siginfo_t *about, int *error)
{
    do {
        about->si_pid = 0;
        *error = waitid(P_PIDFD, (id_t)pidfd, about, WEXITED | WNOHANG) < 0 ? errno : 0;
    } while (*error == EINTR);
    return *error || about->si_pid;
}

/* If there is no space, the process is left to the one that reaps this process's children when it ends. */
static void leave_to_later(int pidfd)
{
    for (size_t i = 0; i < LEFT_MAX; i++) {
        int none = 0;
        if (atomic_compare_exchange_strong(&left_pidfds[i], &none, pidfd + 1))
            return;
    }
    close(pidfd);
}

static void reap_left(void)
{
    for (size_t i = 0; i < LEFT_MAX; i++) {
        siginfo_t about;
        int error, pidfd = atomic_exchange(&left_pidfds[i], 0) - 1;
        if (pidfd >= 0 && reap_at_once(pidfd, &about, &error))
            close(pidfd);
        else if (pidfd >= 0)
            leave_to_later(pidfd);
    }
}

/* The process is gone, or will be: a process that waits in the kernel for storage ends when the storage
 * responds. So this waits for at most REAP_NS; a process that ends later is reaped later. */
static void reap(struct sandbox *sandbox)
{
    struct timespec wait = {REAP_NS / NS_PER_S, REAP_NS % NS_PER_S};
    siginfo_t about = {0};
    int error;
    bool reaped;
    sandbox->pid = -1; /* before it is reaped: sandbox_read() must not use the pid for another process */
    reap_left();
    const uint64_t give_up_ns = monotonic_ns() + REAP_NS;
    struct pollfd end = {sandbox->pidfd, POLLIN, 0};
    /* One call, and one more below: the number of calls per run does not depend on when the run ends. */
    (void)ppoll(&end, 1, &wait, NULL);
    while (!(reaped = reap_at_once(sandbox->pidfd, &about, &error)) && monotonic_ns() < give_up_ns) {
        /* A signal arrived, or a debugger has the process and has not released it. */
        wait = (struct timespec){0, REAP_LOOK_NS};
        (void)ppoll(NULL, 0, &wait, NULL);
    }
    if (reaped)
        close(sandbox->pidfd);
    else
        leave_to_later(sandbox->pidfd);
    sandbox->pidfd = -1;
    set_event(sandbox, EVENT_PROCESS_DIED, 0);
    if (!reaped)
        sandbox->event.os_error = ETIMEDOUT;
    else if (error) /* other code in this process waits for every child */
        sandbox->event.os_error = error;
    else if (about.si_code == CLD_EXITED)
        sandbox->event.status = about.si_status;
    else
        sandbox->event.detail = (uint64_t)about.si_status;
}

static bool may_detach(const struct vm *vm)
{
    for (uint32_t i = 0; i < vm->device_end; i++) {
        const struct device_ops *ops = device_ops_of(&vm->devices[i]);
        if (ops && ops->may_detach && ops->may_detach(&vm->devices[i]))
            return true;
    }
    return false;
}

static bool event_is_possible(const struct sandbox *sandbox, const struct vm_event *event)
{
    if (event->instruction_bytes > sizeof event->instruction)
        return false;
    switch (event->kind) {
    case EVENT_CONSOLE: /* if the console is a descriptor, the program writes to it itself */
        return sandbox->vm->console.fd == CONSOLE_PYTHON && event->len <= CONSOLE_PIECE_MAX;
    case EVENT_NETWORK:
        return may_detach(sandbox->vm);
    case EVENT_STOPPED:
        return atomic_load(&sandbox->vm->stop_requested);
    case EVENT_SETUP_FAILED:
        return !sandbox->ready;
    case EVENT_BAD_ACCESS:
        return hypercall_name(event->number) != NULL;
    case EVENT_NONE:
    case EVENT_INTERRUPTED:
    case EVENT_ENTRY_FAILURE:
    case EVENT_INTERNAL_ERROR:
    case EVENT_PROCESS_DIED:
        return false;
    default:
        return event->kind < EVENT_SETUP_FAILED;
    }
}

/* The guest sent what only the handlers should send, or what they never send. */
static void set_false_report(struct sandbox *sandbox)
{
    set_event(sandbox, EVENT_HANDLER_FAULT, 0);
}

/* If another filter ends a process during its set-up, or stops it at a call, this is not the guest's doing:
 * the guest has not started. */
static void blame_outer_filter(struct sandbox *sandbox)
{
    set_event(sandbox, EVENT_SETUP_FAILED, 0);
    sandbox->event.number = SANDBOX_STEP_OUTER_FILTER;
    sandbox->event.os_error = EPERM;
}

/* After an end the program only waits to be killed. A guest that forged the end would go on, with its memory,
 * its devices and a processor. It cannot refuse SIGSTOP, which leaves its memory readable. */
static void take_event(struct sandbox *sandbox)
{
    sandbox->event = sandbox->vm->shared->event;
    if (!sandbox->ready && sandbox->event.kind == EVENT_FORBIDDEN_SYSCALL)
        blame_outer_filter(sandbox);
    else if (!event_is_possible(sandbox, &sandbox->event))
        set_false_report(sandbox);
    if (event_ends_run(sandbox->event.kind))
        signal_program(sandbox, SIGSTOP);
}

/* The end of a program that has closed its socket, or has sent an unknown byte. It is gone, or will be. */
static void take_end(struct sandbox *sandbox, bool nonsense)
{
    signal_program(sandbox, SIGKILL);
    reap(sandbox);
    if (sandbox->stopping)
        set_event(sandbox, EVENT_STOPPED, 0);
    else if (nonsense)
        set_false_report(sandbox);
    else if (!sandbox->ready && sandbox->event.detail == SIGSYS)
        blame_outer_filter(sandbox);
}

static void start_stopping(struct sandbox *sandbox)
{
    if (sandbox->stopping)
        return;
    sandbox->stopping = true;
    sandbox->kill_at_ns = monotonic_ns() + STOP_GRACE_NS;
    signal_program(sandbox, VM_KICK_SIGNAL);
}

/* The bytes after SANDBOX_READY were sent together with it, by the program, before the guest's first
 * instruction. */
static bool take_ready(struct sandbox *sandbox)
{
    struct sandbox_ready ready;
    if (recv(sandbox->control_fd, ready.layers, sizeof ready.layers, MSG_DONTWAIT) != sizeof ready.layers)
        return false;
    const uint32_t layers = ready.layers[0] | (uint32_t)ready.layers[1] << 8;
    sandbox->isolation |= layers & ISOLATION_OF_THE_PROGRAM;
    sandbox->ready = true;
    return true;
}

/* Takes the next byte for this thread. If there is none: 0 at the end of the stream, or -1 and errno. */
static ssize_t receive_word(struct sandbox *sandbox, char *word)
{
    pthread_mutex_lock(&sandbox->control_lock);
    ssize_t got = recv(sandbox->control_fd, word, 1, MSG_DONTWAIT);
    if (got == 1 && *word == SANDBOX_READY && !sandbox->ready && take_ready(sandbox)) {
        got = -1;
        errno = EAGAIN;
    }
    int error = errno;
    pthread_mutex_unlock(&sandbox->control_lock);
    errno = error;
    return got;
}

/* Waits until there is an event. */
static void wait_for_event(struct sandbox *sandbox)
{
    struct vm *vm = sandbox->vm;
    for (;;) {
        struct pollfd wait[2] = {{sandbox->control_fd, POLLIN, 0}, {vm->stop_fd, POLLIN, 0}};
        struct timespec left = {0, 0};
        if (sandbox->stopping) {
            uint64_t now_ns = monotonic_ns();
            if (now_ns >= sandbox->kill_at_ns) {
                signal_program(sandbox, SIGKILL);
                reap(sandbox);
                set_event(sandbox, EVENT_STOPPED, 0);
                return;
            }
            uint64_t left_ns = sandbox->kill_at_ns - now_ns;
            left = (struct timespec){(time_t)(left_ns / NS_PER_S), (long)(left_ns % NS_PER_S)};
        }
        int ready = ppoll(wait, sandbox->stopping ? 1 : 2, sandbox->stopping ? &left : NULL, &vm->poll_mask);
        if (ready < 0 && errno == EINTR) {
            set_event(sandbox, EVENT_INTERRUPTED, 0);
            return;
        }
        if (ready < 0) {
            set_event(sandbox, EVENT_HOST_ERROR, 0);
            sandbox->event.os_error = errno;
            return;
        }
        /* Checked first: a guest that always has something to report is stopped all the same. */
        if (!sandbox->stopping && wait[1].revents)
            start_stopping(sandbox);
        if (!wait[0].revents)
            continue;
        char word;
        ssize_t got = receive_word(sandbox, &word);
        if (got == 1 && word == SANDBOX_EVENT) {
            take_event(sandbox);
            return;
        }
        if (got >= 0 || errno != EAGAIN) {
            take_end(sandbox, got > 0);
            return;
        }
    }
}

/* False: what was sent before was not read for so long that there is no space, which the handlers would never
 * cause. If the program is gone, this is not a failure: the wait will notice. */
static bool send_go(const struct sandbox *sandbox)
{
    const char go = SANDBOX_GO;
    return send(sandbox->control_fd, &go, 1, MSG_NOSIGNAL | MSG_DONTWAIT) == 1 || errno != EAGAIN;
}

void sandbox_run(struct sandbox *sandbox)
{
    struct vm *vm = sandbox->vm;
    sigset_t saved;
    if (!sandbox->started && atomic_load(&vm->stop_requested)) {
        set_event(sandbox, EVENT_STOPPED, 0);
        return;
    }
    vm_enter(vm, &saved);
    bool answer =
        !sandbox->started || sandbox->event.kind == EVENT_CONSOLE || sandbox->event.kind == EVENT_NETWORK;
    sandbox->started = true;
    if (sandbox->stopping && !sandbox->stopped_late) {
        /* The stop came while the program waited for Python to take a piece of console, and it could not
         * obey. This is done once: a guest that goes on sending pieces must not live on because of it. */
        sandbox->stopped_late = true;
        sandbox->kill_at_ns = monotonic_ns() + STOP_GRACE_NS;
    }
    if (!answer || send_go(sandbox))
        wait_for_event(sandbox);
    else
        take_end(sandbox, true);
    if (event_ends_run(sandbox->event.kind) && !vm->shared->timeline.guest_exit)
        vm->shared->timeline.guest_exit = monotonic_ns();
    vm_leave(vm, &saved);
}

uint32_t sandbox_isolation(struct sandbox *sandbox)
{
    const uint64_t give_up_ns = monotonic_ns() + PREPARE_NS;
    while (!sandbox->ready && sandbox->pidfd >= 0 && monotonic_ns() < give_up_ns) {
        struct pollfd said = {sandbox->control_fd, POLLIN, 0};
        const struct timespec wait = {0, PREPARE_NS / 10};
        char word;
        if (ppoll(&said, 1, &wait, NULL) < 1)
            continue;
        pthread_mutex_lock(&sandbox->control_lock);
        /* All other bytes are left for sandbox_run(). */
        if (!sandbox->ready && recv(sandbox->control_fd, &word, 1, MSG_DONTWAIT | MSG_PEEK) == 1 &&
            word == SANDBOX_READY && recv(sandbox->control_fd, &word, 1, MSG_DONTWAIT) == 1)
            (void)take_ready(sandbox);
        pthread_mutex_unlock(&sandbox->control_lock);
        break;
    }
    return sandbox->isolation;
}

/* The program maps the guest's memory itself, after its parent has gone on. Until then there is nothing to
 * read, or less than the guest will find. A program that cannot map it ends or reports that, and the read
 * fails. */
static void wait_until_prepared(const struct sandbox *sandbox)
{
    struct sandbox_config *config = (void *)(sandbox->mapping + SANDBOX_CONFIG_OFFSET);
    struct pollfd ends[2] = {{sandbox->control_fd, POLLIN, 0}, {sandbox->pidfd, POLLIN, 0}};
    const uint64_t give_up_ns = monotonic_ns() + PREPARE_NS;
    /* SANDBOX_GO may have been sent before it has mapped anything. Once SANDBOX_READY has arrived, a
     * guest that clears `prepared` makes no reader wait. */
    while (!sandbox->ready && !atomic_load_explicit(&config->prepared, memory_order_acquire) &&
           monotonic_ns() < give_up_ns) {
        const struct timespec wait = {0, PREPARE_LOOK_NS};
        if (ppoll(ends, 2, &wait, NULL) != 0)
            return;
    }
}

int64_t sandbox_read(const struct sandbox *sandbox, gpa_t gpa, void *to, uint64_t len)
{
    int pid = sandbox->pid;
    if (pid < 0)
        return -ESRCH;
    wait_until_prepared(sandbox);
    struct iovec here = {to, len}, there = {(void *)(uintptr_t)gpa, len};
    ssize_t got = process_vm_readv(pid, &here, 1, &there, 1, 0);
    return got < 0 ? -errno : got;
}

int64_t sandbox_write(const struct sandbox *sandbox, gpa_t gpa, const void *from, uint64_t len)
{
    if (sandbox->pid < 0)
        return -ESRCH;
    wait_until_prepared(sandbox);
    const struct iovec here = {(void *)(uintptr_t)from, len}, there = {(void *)(uintptr_t)gpa, len};
    const ssize_t put = process_vm_writev(sandbox->pid, &here, 1, &there, 1, 0);
    return put < 0 ? -errno : put;
}

void sandbox_release(struct sandbox *sandbox)
{
    if (sandbox->pidfd >= 0 && sandbox->parent != getpid()) {
        close(sandbox->pidfd);
        sandbox->pidfd = -1;
    }
    if (sandbox->pidfd >= 0)
        signal_program(sandbox, SIGKILL); /* whether it waits for SANDBOX_GO or runs: nothing is lost */
    if (sandbox->control_fd >= 0)
        close(sandbox->control_fd);
    if (sandbox->vm_fd >= 0)
        close(sandbox->vm_fd);
    if (sandbox->mapping) {
        sandbox->vm->shared = &sandbox->vm->own_shared;
        sandbox->vm->event = &sandbox->vm->own_shared.event;
        munmap(sandbox->mapping, SANDBOX_VM_BYTES);
    }
    sandbox->mapping = NULL;
    sandbox->control_fd = sandbox->vm_fd = -1;
    if (sandbox->pidfd >= 0)
        reap(sandbox); /* last, because the kernel takes a while to end it */
}
