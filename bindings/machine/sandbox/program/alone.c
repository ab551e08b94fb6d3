/*
 * The program without an observer: the native command has executed it in its own process. It handles the
 * signals that end a run, writes the message of the end to stderr, writes its report, and exits with the
 * run's status.
 *
 * A guest that takes over the program can write anything to stderr and the report, and can choose the status:
 * all of these belong to its own process. It cannot keep the process from ending: no signal can be blocked
 * (trap.c), and a handler that ends the run never returns.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>

#include "device.h"
#include "exit_report.h"
#include "observer_words.h"
#include "program.h"
#include "report.h"
#include "says.h"
#include "syscalls.h"

#define SIGSET_BYTES 8 /* the kernel's */
#define HURRY_NS     UINT64_C(1000000000)

static struct sandbox_alone self;
static uint32_t own_layers; /* the layers that this program itself has put in force */

static struct {
    bool decided;                     /* the event is final */
    bool worded;                      /* and the texts below describe it */
    char for_observer;                /* OBSERVER_..., or 0 */
    bool observed;                    /* it has been told */
    volatile uint64_t hurry_until_ns; /* a stop has come: a slow reader has until then. 0: none has */
    int32_t status;
    char text[4096];
    size_t length;
    struct output_progress written;
    struct output_progress report_written;
} ending;

/* By a system call: the vDSO's address is in memory that a guest could have overwritten. */
static uint64_t now_ns(void)
{
    struct timespec now = {0, 0};
    (void)system_call(CLOCK_MONOTONIC, (uint64_t)&now, 0, 0, 0, 0, SYS_clock_gettime);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static bool is_over(uint64_t until_ns)
{
    const uint64_t now = now_ns();
    return now >= until_ns || (ending.hurry_until_ns && now >= ending.hurry_until_ns);
}

static void add_line(const char *before, const char *line)
{
    char *const to = ending.text + ending.length;
    const size_t capacity = sizeof ending.text - ending.length;
    const int added = snprintf(to, capacity, "%s: %s%s\n", self.program, before, line);
    if (added > 0 && (size_t)added < capacity)
        ending.length += (size_t)added;
}

static void add(const char *line)
{
    add_line("", line);
}

static void add_hint(const char *hint)
{
    if (self.hints && *hint)
        add_line("hint: ", hint);
}

static const struct exit_reader reader = {add, add_hint, NULL};

/* ---- the end */

static _Noreturn void leave(int32_t status)
{
    for (;;)
        (void)system_call((uint64_t)status, 0, 0, 0, 0, 0, SYS_exit_group);
}

static void finish_text(void)
{
    (void)output_write(&self.errors, ending.text, ending.length, &ending.written, is_over, UINT64_MAX);
}

/* The process stands still until the observer has looked at it (command/observer.c), or a stop comes. */
static void be_observed(void)
{
    const char word = ending.for_observer ? ending.for_observer : OBSERVER_NOTHING;
    struct pollfd answer = {SANDBOX_FD_CONTROL, POLLIN, 0};
    struct timespec limit = {OBSERVER_WAIT_S, 0};
    if (!self.observed || ending.observed)
        return;
    ending.observed = true;
    the_report_line.open = self.report.fd >= 0;
    if (system_call(SANDBOX_FD_CONTROL, (uint64_t)&word, 1, 0, 0, 0, SYS_write) == 1 &&
        word != OBSERVER_NOTHING)
        while (system_call((uint64_t)&answer, 1, (uint64_t)&limit, 0, 0, 0, SYS_ppoll) == -EINTR)
            ;
}

static size_t close_report(void)
{
    if (self.report.fd < 0)
        return 0;             /* its page is not touched */
    the_report_line.open = 0; /* the observer looks at it while this process is stopped */
    const uint64_t length = the_report_line.length;
    return length < sizeof the_report_line.text ? length : sizeof the_report_line.text;
}

static _Noreturn void finish(void)
{
    finish_text();
    be_observed();
    const size_t report_length = close_report();
    const int error = output_write(&self.report, the_report_line.text, report_length, &ending.report_written,
                                   is_over, UINT64_MAX);
    if (error && *self.report_name) {
        char line[sizeof self.report_name + 64];
        ending.report_written.done = report_length;
        (void)snprintf(line, sizeof line, says_report_lost, self.report_name,
                       error == -EAGAIN ? says_not_read : strerror(-error));
        add(line);
        finish_text();
    }
    leave(ending.status);
}

/* The end is complete. From here on it is only written, and a stop only limits the time for that. */
static _Noreturn void finish_with(const struct told_exit *told, const struct vm_event *event, int stopped_by)
{
    const struct report_about about = {.image = self.image,
                                       .signal = stopped_by == SIGALRM ? 0 : stopped_by,
                                       .backend = "sandbox",
                                       .isolation = self.layers | own_layers,
                                       .start_ns = self.start_ns,
                                       .vm_created_ns = self.created_ns};
    ending.report_written = (struct output_progress){0, 0};
    if (self.report.fd >= 0)
        the_report_line.length = report_write(the_report_line.text, &about, told, event, the_vm.shared);
    ending.status = told->status;
    ending.decided = ending.worded = true;
    finish();
}

_Noreturn void alone_end(int stopped_by)
{
    struct vm_event event = the_vm.shared->event;
    struct told_exit told;
    ending.decided = true;
    ending.length = 0;
    ending.written = (struct output_progress){0, 0};
    if (!the_vm.shared->timeline.guest_exit)
        the_vm.shared->timeline.guest_exit = now_ns();
    net_leave_headers(&the_vm);
    if (!is_entered() &&
        event.kind == EVENT_FORBIDDEN_SYSCALL) /* a guest that has not started makes no system call */
        event = (struct vm_event){.kind = EVENT_SETUP_FAILED, .number = STEP_OUTER_FILTER, .os_error = EPERM};
    exit_report_tell(&event, &sandbox_words, stopped_by, self.time_over, &reader, &told);
    if (exit_is_abnormal(&event, stopped_by))
        ending.for_observer =
            event.kind == EVENT_STOPPED && stopped_by == SIGALRM ? OBSERVER_TIMEOUT : OBSERVER_LOOK;
    finish_with(&told, &event, stopped_by);
}

/* Called by a signal handler, and does not return: the interrupted code may be the guest's. From here on a
 * slow reader has one second. If an end is being written already, that second is for
 * the rest of it. */
_Noreturn void alone_stop(int number, bool in_a_call, int64_t answer)
{
    const uint64_t until_ns = now_ns() + HURRY_NS;
    if (!ending.hurry_until_ns || ending.hurry_until_ns > until_ns)
        ending.hurry_until_ns = until_ns;
    if (ending.worded) {
        output_take_over(&ending.written, in_a_call, answer);
        output_take_over(&ending.report_written, in_a_call, answer);
        finish();
    }
    if (ending.decided)
        alone_end(0);
    the_vm.shared->event = (struct vm_event){.kind = EVENT_STOPPED};
    alone_end(number);
}

void alone_refuse_missing(uint32_t layers)
{
    const uint32_t missing = self.required & ~(self.layers | layers);
    struct told_exit told;
    own_layers = layers;
    if (!missing)
        return;
    net_leave_headers(&the_vm);
    exit_report_tell_missing(missing, &sandbox_words, &reader, &told);
    finish_with(&told, NULL, 0);
}

/* ---- during the run */

void alone_network(void)
{
    char text[NET_NEWS_BYTES];
    for (uint32_t next = 0; net_news(&the_vm, &next, NULL, text);) {
        char line[NET_NEWS_BYTES + sizeof self.program + 4];
        const int length = snprintf(line, sizeof line, "%s: %s\n", self.program, text);
        struct output_progress written = {0, 0};
        (void)output_write(&self.errors, line, (size_t)length, &written, is_over, now_ns() + HURRY_NS);
    }
}

void alone_begin(const struct sandbox_alone *alone)
{
    self = *alone;
    (void)system_call(PR_SET_NAME, (uint64_t)self.program, 0, 0, 0, 0, SYS_prctl);
}

void alone_let_signals_in(void)
{
    step_check(STEP_SIGNALS,
               system_call(SIG_SETMASK, (uint64_t)&self.mask, 0, SIGSET_BYTES, 0, 0, SYS_rt_sigprocmask));
}
