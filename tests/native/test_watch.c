/*
 * Waiting for a tender-sandbox, with a peer that sends what a hijacked one could send: every kind
 * of event, hostile values, garbage, too much, nothing, the end. This test is the peer at the
 * socket. The process is a child that only waits for its end. Prints one TAP line for each check
 * and exits with 1 if one fails.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "devices.h"
#include "holds.h"
#include "runner.h"
#include "spawn.h"

#define MS 1000000u

static struct vm vm;
static struct sandbox sandbox;
static int peer; /* the program's end of the control socket */

/* Makes by hand a VM that has been spawned. */
static void set_up(void)
{
    int pair[2];
    memset(&vm, 0, sizeof vm);
    if (vm_init(&vm) < 0 || sandbox_init(&sandbox, &vm, NULL) < 0 ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        abort();
    vm.console.fd = CONSOLE_PYTHON;
    sandbox.control_fd = pair[0];
    peer = pair[1];
    int pid = fork();
    if (pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;)
            pause();
    }
    sandbox.pid = pid;
    sandbox.pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pid < 0 || sandbox.pidfd < 0)
        abort();
}

static void tear_down(void)
{
    close(peer);
    sandbox_release(&sandbox);
    vm_release(&vm);
}

static void send_bytes(const void *words, size_t count)
{
    if (send(peer, words, count, MSG_NOSIGNAL) != (ssize_t)count)
        abort();
}

/* The program reports `event`. Returns how the monitor interprets it. */
static const struct vm_event *report(struct vm_event event)
{
    vm.shared->event = event;
    sandbox.ready = event.kind != EVENT_SETUP_FAILED; /* all other events come after the guest has started */
    send_bytes("e", 1);
    sandbox_run(&sandbox);
    return &sandbox.event;
}

/* Returns how many bytes the monitor has sent, or -1 if one of them is not GO. */
static int gone_on(void)
{
    char words[64];
    ssize_t got = recv(peer, words, sizeof words, MSG_DONTWAIT);
    for (ssize_t i = 0; i < got; i++)
        if (words[i] != SANDBOX_GO)
            return -1;
    return got < 0 ? 0 : (int)got;
}

static bool is_false_report(const struct vm_event *event)
{
    static const struct vm_event expected = {.kind = EVENT_HANDLER_FAULT};
    return memcmp(event, &expected, sizeof expected) == 0;
}

/* Kinds that no sandbox reports: those that are not ends, those of KVM, those of the monitor, and
 * unknown ones. */
static bool kind_is_reported(uint32_t kind)
{
    return kind >= EVENT_HALT && kind <= EVENT_SETUP_FAILED && kind != EVENT_STOPPED &&
           kind != EVENT_INTERRUPTED && kind != EVENT_ENTRY_FAILURE && kind != EVENT_INTERNAL_ERROR &&
           kind != EVENT_PROCESS_DIED;
}

static void test_every_kind(void)
{
    static const uint32_t odd[] = {18, 19, 255, 256, 0x10001, 0x7fffffff, 0x80000000, UINT32_MAX};
    set_up();
    for (uint32_t i = 0; i <= EVENT_SETUP_FAILED + sizeof odd / sizeof *odd; i++) {
        uint32_t kind = i <= EVENT_SETUP_FAILED ? i : odd[i - EVENT_SETUP_FAILED - 1];
        const struct vm_event *event = report((struct vm_event){.kind = kind, .number = 1, .rip = 7});
        char claim[64];
        (void)snprintf(claim, sizeof claim, "kind %u is %s", kind,
                       kind_is_reported(kind) ? "taken" : "refused");
        check(kind_is_reported(kind) ? event->kind == kind && event->rip == 7 : is_false_report(event), claim,
              __LINE__);
    }
    tear_down();
}

static void test_hostile_values(void)
{
    set_up();
    HOLDS(report((struct vm_event){.kind = EVENT_CONSOLE, .len = CONSOLE_PIECE_MAX})->kind == EVENT_CONSOLE);
    HOLDS(is_false_report(report((struct vm_event){.kind = EVENT_CONSOLE, .len = CONSOLE_PIECE_MAX + 1})));
    HOLDS(is_false_report(report((struct vm_event){.kind = EVENT_CONSOLE, .len = UINT64_MAX})));
    for (uint32_t number = 1; number <= 8; number++)
        HOLDS(report((struct vm_event){.kind = EVENT_BAD_ACCESS, .number = number})->number == number);
    HOLDS(is_false_report(report((struct vm_event){.kind = EVENT_BAD_ACCESS, .number = 0})));
    HOLDS(is_false_report(report((struct vm_event){.kind = EVENT_BAD_ACCESS, .number = 9})));
    HOLDS(is_false_report(report((struct vm_event){.kind = EVENT_BAD_ACCESS, .number = 15})));
    HOLDS(!is_false_report(report((struct vm_event){.kind = EVENT_BAD_ACCESS, .number = 16})));
    HOLDS(!is_false_report(report((struct vm_event){.kind = EVENT_BAD_ACCESS, .number = 17})));
    HOLDS(is_false_report(report((struct vm_event){.kind = EVENT_BAD_ACCESS, .number = 18})));
    HOLDS(is_false_report(report((struct vm_event){.kind = EVENT_BAD_ACCESS, .number = UINT32_MAX})));
    for (uint32_t kind = EVENT_UNHANDLED_EXIT; kind <= EVENT_SETUP_FAILED; kind++) {
        if (!kind_is_reported(kind))
            continue;
        HOLDS(report((struct vm_event){.kind = kind, .instruction_bytes = 16})->kind == kind);
        HOLDS(is_false_report(report((struct vm_event){.kind = kind, .instruction_bytes = 17})));
        HOLDS(is_false_report(report((struct vm_event){.kind = kind, .instruction_bytes = UINT32_MAX})));
    }
    /* A console that Python does not read: nobody would take the bytes. */
    vm.console.fd = CONSOLE_DISCARD;
    HOLDS(is_false_report(report((struct vm_event){.kind = EVENT_CONSOLE, .len = 1})));
    vm.console.fd = 1;
    HOLDS(is_false_report(report((struct vm_event){.kind = EVENT_CONSOLE, .len = 1})));
    tear_down();
}

/* A guest has an interface, which may have been deleted. The guest goes on when it is told to. */
static void test_a_look_at_the_networks(void)
{
    set_up();
    vm.devices[1] = net_on(-1, (struct net_device){.is_socket = true});
    vm.device_end = 2;
    HOLDS(is_false_report(report((struct vm_event){.kind = EVENT_NETWORK})));
    tear_down();
    set_up();
    vm.devices[1] = net_on(-1, (struct net_device){0});
    vm.device_end = 2;
    HOLDS(report((struct vm_event){.kind = EVENT_NETWORK})->kind == EVENT_NETWORK && gone_on() == 1);
    HOLDS(report((struct vm_event){.kind = EVENT_NETWORK})->kind == EVENT_NETWORK && gone_on() == 1);
    HOLDS(report((struct vm_event){.kind = EVENT_HALT, .status = 3})->kind == EVENT_HALT && gone_on() == 1);
    tear_down();
}

static void test_what_was_taken_does_not_change(void)
{
    set_up();
    const struct vm_event *event = report((struct vm_event){.kind = EVENT_HALT, .status = 3});
    vm.shared->event = (struct vm_event){.kind = EVENT_CONSOLE, .len = UINT64_MAX, .status = 4};
    HOLDS(event->kind == EVENT_HALT && event->status == 3);
    HOLDS(vm.event == event);
    HOLDS(vm.shared->timeline.guest_exit != 0);
    tear_down();
}

/* The two bytes after the first READY were sent before the guest started. Nothing later changes them. */
static void test_layers_are_those_of_the_first_report(void)
{
    set_up();
    sandbox.isolation = ISOLATION_USER_NAMESPACE;
    send_bytes("r\xff\xff", 3);
    uint32_t told = sandbox_isolation(&sandbox);
    HOLDS(told == (ISOLATION_USER_NAMESPACE | ISOLATION_OF_THE_PROGRAM));
    send_bytes("r\0\0", 3);
    sandbox_run(&sandbox);
    HOLDS(is_false_report(&sandbox.event) && sandbox_isolation(&sandbox) == told);
    tear_down();

    set_up();
    vm.shared->event = (struct vm_event){.kind = EVENT_SETUP_FAILED, .number = 3, .os_error = 1};
    send_bytes("e", 1);
    HOLDS(sandbox_isolation(&sandbox) == 0);
    sandbox_run(&sandbox);
    HOLDS(sandbox.event.kind == EVENT_SETUP_FAILED);
    tear_down();
}

static void test_the_program_gets_each_go_once(void)
{
    set_up();
    HOLDS(report((struct vm_event){.kind = EVENT_CONSOLE, .len = 1})->kind == EVENT_CONSOLE);
    HOLDS(gone_on() == 1); /* GO into the guest */
    HOLDS(vm.shared->timeline.guest_exit == 0);
    HOLDS(report((struct vm_event){.kind = EVENT_HALT})->kind == EVENT_HALT);
    HOLDS(gone_on() == 1); /* GO after the console's piece */
    tear_down();
}

static void on_alarm(int number)
{
    (void)number;
}

static void test_a_signal_comes_between_and_the_wait_goes_on(void)
{
    const struct itimerval soon = {.it_value = {.tv_usec = 20000}};
    set_up();
    (void)signal(SIGALRM, on_alarm);
    setitimer(ITIMER_REAL, &soon, NULL);
    sandbox_run(&sandbox);
    HOLDS(sandbox.event.kind == EVENT_INTERRUPTED);
    HOLDS(vm.shared->timeline.guest_exit == 0);
    HOLDS(gone_on() == 1);
    HOLDS(report((struct vm_event){.kind = EVENT_HALT})->kind == EVENT_HALT);
    HOLDS(gone_on() == 0); /* the program was running all the time */
    tear_down();
}

/* ---- the end of the process */

static void test_garbage_is_the_end(void)
{
    for (int word = 0; word < 256; word++) {
        if (word == SANDBOX_EVENT || (word > 4 && word < 250 && word != SANDBOX_GO))
            continue;
        const char byte = (char)word;
        set_up();
        send_bytes(&byte, 1);
        sandbox_run(&sandbox);
        HOLDS(sandbox.event.kind == EVENT_HANDLER_FAULT && sandbox.event.detail == 0); /* a false report */
        HOLDS(sandbox.pidfd == -1 && sandbox_read(&sandbox, 0x10000, &word, 1) == -ESRCH);
        tear_down();
    }
}

static void test_a_peer_that_is_gone_is_the_end(void)
{
    set_up();
    shutdown(peer, SHUT_RDWR);
    sandbox_run(&sandbox);
    HOLDS(sandbox.event.kind == EVENT_PROCESS_DIED && sandbox.event.detail == SIGKILL);
    tear_down();
}

/* Replaces the child by one that ends by itself, and closes that child's end of the socket after
 * its end. */
static void end_by(int status, int signal_number)
{
    kill(sandbox.pid, SIGKILL);
    waitpid(sandbox.pid, NULL, 0);
    close(sandbox.pidfd);
    sandbox.pid = fork();
    if (sandbox.pid == 0) {
        if (signal_number)
            raise(signal_number);
        _exit(status);
    }
    sandbox.pidfd = (int)syscall(SYS_pidfd_open, sandbox.pid, 0);
    siginfo_t about;
    (void)waitid(P_PID, (id_t)sandbox.pid, &about, WEXITED | WNOWAIT);
    shutdown(peer, SHUT_RDWR);
}

static void test_how_the_process_died_is_reported(void)
{
    set_up();
    end_by(3, 0);
    sandbox_run(&sandbox);
    HOLDS(sandbox.event.kind == EVENT_PROCESS_DIED);
    HOLDS(sandbox.event.detail == 0 && sandbox.event.status == 3 && sandbox.event.os_error == 0);
    tear_down();

    set_up();
    end_by(0, SIGSYS);
    sandbox_run(&sandbox);
    HOLDS(sandbox.event.kind == EVENT_SETUP_FAILED && sandbox.event.os_error == EPERM);
    tear_down(); /* before READY: the verdict of another filter */

    set_up();
    send_bytes("r\0\0", 3);
    end_by(0, SIGSYS);
    sandbox_run(&sandbox);
    HOLDS(sandbox.event.kind == EVENT_PROCESS_DIED && sandbox.event.detail == SIGSYS);
    tear_down();

    set_up();
    end_by(3, 0);
    waitpid(sandbox.pid, NULL, 0); /* other code in this process has reaped it already */
    sandbox_run(&sandbox);
    HOLDS(sandbox.event.kind == EVENT_PROCESS_DIED && sandbox.event.os_error == ECHILD);
    tear_down();
}

/* A process whose status the kernel does not report, such as one that waits for storage: here a
 * debugger delays it. */
/* `as_zero`: the process's descriptor has the number that a closed standard input leaves free. */
static void test_a_process_that_does_not_end_is_not_waited_for(bool as_zero)
{
    int told[2];
    set_up();
    if (as_zero) {
        HOLDS(dup2(sandbox.pidfd, 0) == 0);
        close(sandbox.pidfd);
        sandbox.pidfd = 0;
    }
    const int pid = sandbox.pid;
    if (pipe(told) < 0)
        abort();
    int debugger = fork();
    if (debugger == 0) {
        char answer = ptrace(PTRACE_SEIZE, pid, 0, 0) == 0 ? 'y' : 'n';
        (void)!write(told[1], &answer, 1);
        for (;;)
            pause();
    }
    char answer = 'n';
    HOLDS(read(told[0], &answer, 1) == 1);
    (void)alarm(60);
    tear_down();
    siginfo_t about = {0};
    if (answer == 'y')
        HOLDS(waitid(P_PID, (id_t)pid, &about, WEXITED | WNOHANG | WNOWAIT) == 0 && about.si_pid == 0);
    kill(debugger, SIGKILL);
    waitpid(debugger, NULL, 0);
    HOLDS(answer != 'y' || waitid(P_PID, (id_t)pid, &about, WEXITED | WNOWAIT) == 0);
    set_up();
    tear_down(); /* the next process that is reaped takes this one along */
    HOLDS(waitid(P_PID, (id_t)pid, &about, WEXITED | WNOHANG | WNOWAIT) < 0 && errno == ECHILD);
    HOLDS(!as_zero || (fcntl(0, F_GETFD) < 0 && errno == EBADF));
    (void)alarm(0);
    close(told[0]);
    close(told[1]);
}

/* ---- stopping the program */

static void test_a_stop_before_the_start_sends_the_program_nothing(void)
{
    set_up();
    vm_stop(&vm);
    sandbox_run(&sandbox);
    HOLDS(sandbox.event.kind == EVENT_STOPPED && gone_on() == 0);
    tear_down();
}

static void start(void)
{
    HOLDS(report((struct vm_event){.kind = EVENT_CONSOLE})->kind == EVENT_CONSOLE);
}

static void test_a_program_that_does_not_obey_is_killed(void)
{
    sigset_t kick;
    sigemptyset(&kick);
    sigaddset(&kick, VM_KICK_SIGNAL);
    sigprocmask(SIG_BLOCK, &kick, NULL); /* inherited by the child, so that a kick does not reach it */
    set_up();
    start();
    vm_stop(&vm);
    uint64_t before_ns = monotonic_ns();
    sandbox_run(&sandbox);
    uint64_t took_ns = monotonic_ns() - before_ns;
    HOLDS(sandbox.event.kind == EVENT_STOPPED);
    HOLDS(took_ns >= 150u * MS && took_ns < 10000u * (uint64_t)MS);
    HOLDS(sandbox.pidfd == -1);
    tear_down();
    sigprocmask(SIG_UNBLOCK, &kick, NULL);
}

static void test_a_stop_is_believed_only_if_it_was_asked_for(void)
{
    sigset_t kick;
    sigemptyset(&kick);
    sigaddset(&kick, VM_KICK_SIGNAL);
    sigprocmask(SIG_BLOCK, &kick, NULL);
    set_up();
    start();
    HOLDS(is_false_report(report((struct vm_event){.kind = EVENT_STOPPED})));
    vm_stop(&vm);
    HOLDS(report((struct vm_event){.kind = EVENT_STOPPED})->kind == EVENT_STOPPED);
    tear_down();
    sigprocmask(SIG_UNBLOCK, &kick, NULL);
}

/* Endless reports, and the program reads no answer. Nevertheless a stop must end it, and nothing
 * may hang. */
static void test_a_program_that_only_talks_is_stopped(void)
{
    sigset_t kick;
    sigemptyset(&kick);
    sigaddset(&kick, VM_KICK_SIGNAL);
    sigprocmask(SIG_BLOCK, &kick, NULL);
    set_up();
    start();
    vm_stop(&vm);
    const uint64_t limit_ns = monotonic_ns() + 20000u * (uint64_t)MS;
    uint64_t pieces = 0;
    while (sandbox.event.kind == EVENT_CONSOLE && monotonic_ns() < limit_ns) {
        (void)!send(peer, "eeee", 4, MSG_NOSIGNAL | MSG_DONTWAIT);
        sandbox_run(&sandbox);
        pieces++;
    }
    HOLDS(sandbox.event.kind == EVENT_STOPPED && sandbox.pidfd == -1);
    HOLDS(pieces > 1);
    tear_down();
    sigprocmask(SIG_UNBLOCK, &kick, NULL);
}

static void test_a_program_that_reads_nothing_is_not_waited_for(void)
{
    set_up();
    start();
    uint64_t pieces = 0;
    while (sandbox.event.kind == EVENT_CONSOLE && pieces < 1000000) {
        (void)!send(peer, "e", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
        sandbox_run(&sandbox);
        pieces++;
        siginfo_t about = {0};
        (void)waitid(P_PID, (id_t)sandbox.pid, &about, WEXITED | WNOWAIT | WNOHANG);
        if (about.si_pid)
            shutdown(peer, SHUT_WR); /* as the kernel does with a dead process's socket */
    }
    HOLDS(sandbox.event.kind == EVENT_HANDLER_FAULT && sandbox.event.detail == 0); /* a false report */
    tear_down();
}

int main(void)
{
    alarm(60); /* a wait that never ends must fail, too */
    test_every_kind();
    test_hostile_values();
    test_a_look_at_the_networks();
    test_what_was_taken_does_not_change();
    test_layers_are_those_of_the_first_report();
    test_the_program_gets_each_go_once();
    test_garbage_is_the_end();
    test_a_peer_that_is_gone_is_the_end();
    test_how_the_process_died_is_reported();
    test_a_process_that_does_not_end_is_not_waited_for(false);
    test_a_process_that_does_not_end_is_not_waited_for(true);
    test_a_stop_before_the_start_sends_the_program_nothing();
    test_a_program_that_does_not_obey_is_killed();
    test_a_stop_is_believed_only_if_it_was_asked_for();
    test_a_program_that_only_talks_is_stopped();
    test_a_program_that_reads_nothing_is_not_waited_for();
    test_a_signal_comes_between_and_the_wait_goes_on();
    return claims_end();
}
