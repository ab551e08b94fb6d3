/*
 * The program without an observer: the native command has executed it in its own process. It hears what ends
 * a run, writes the end's line to stderr, and exits with the run's status.
 *
 * A guest that takes the program over can write what it likes there, and choose the status: both are its own
 * process's. It cannot keep the process from ending: no signal can be blocked (trap.c), and a handler that
 * ends the run never goes back.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "device.h"
#include "ends.h"
#include "program.h"
#include "syscalls.h"

#define SIGSET_BYTES 8 /* the kernel's */
#define LOOK_NS      50000000
#define HURRY_NS     UINT64_C(1000000000)
#define PIECE_MAX    4096 /* PIPE_BUF: what a pipe takes as a whole */

static struct sandbox_alone self;

static struct {
    bool decided; /* the event is the end's */
    bool worded;  /* and what is below is its */
    bool hurried;
    int32_t status;
    char text[4096];
    size_t length;
    volatile size_t written; /* a stop goes on from here */
} ending;

/* By a call of the kernel's: where the vDSO lies stands in memory that a guest could have written over. */
static uint64_t now_ns(void)
{
    struct timespec now = {0, 0};
    (void)system_call(CLOCK_MONOTONIC, (uint64_t)&now, 0, 0, 0, 0, SYS_clock_gettime);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* ---- stderr */

static ssize_t write_at_once(const char *text, size_t length)
{
    const struct iovec piece = {(void *)(uintptr_t)text, length < PIECE_MAX ? length : PIECE_MAX};
    if (self.stderr_nowait) {
        const ssize_t written = pwritev2(SANDBOX_FD_STDERR, &piece, 1, -1, RWF_NOWAIT);
        if (written >= 0 || errno != EOPNOTSUPP)
            return written;
    }
    if (self.stderr_socket)
        return send(SANDBOX_FD_STDERR, text, piece.iov_len, MSG_DONTWAIT | MSG_NOSIGNAL);
    return write(SANDBOX_FD_STDERR, text, piece.iov_len);
}

/* From *at on, until all is written, nobody will ever read it, or it is `until_ns`. */
static void write_text(const char *text, size_t length, volatile size_t *at, uint64_t until_ns)
{
    const struct timespec look = {0, LOOK_NS};
    while (*at < length && now_ns() < until_ns) {
        struct pollfd room = {SANDBOX_FD_STDERR, POLLOUT, 0};
        if (ppoll(&room, 1, &look, NULL) <= 0)
            continue;
        const ssize_t written = write_at_once(text + *at, length - *at);
        if (written > 0)
            *at += (size_t)written;
        else if (errno == EAGAIN) /* somebody else took the room, or it was too little */
            (void)ppoll(NULL, 0, &look, NULL);
        else if (errno != EINTR)
            break;
    }
}

static void add_line(const char *before, const char *line)
{
    char *const to = ending.text + ending.length;
    const size_t room = sizeof ending.text - ending.length;
    const int added = snprintf(to, room, "%s: %s%s\n", self.program, before, line);
    if (added > 0 && (size_t)added < room)
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

static const struct end_reader reader = {add, add_hint, NULL};

/* ---- the end */

static _Noreturn void leave(int32_t status)
{
    for (;;)
        (void)system_call((uint64_t)status, 0, 0, 0, 0, 0, SYS_exit_group);
}

static _Noreturn void finish(void)
{
    const uint64_t until_ns = ending.hurried ? now_ns() + HURRY_NS : UINT64_MAX;
    write_text(ending.text, ending.length, &ending.written, until_ns);
    leave(ending.status);
}

_Noreturn void alone_end(int stopped_by)
{
    struct vm_event event = the_vm.shared->event;
    ending.decided = true;
    ending.length = ending.written = 0;
    net_leave_headers(&the_vm);
    if (!is_entered() &&
        event.kind == EVENT_FORBIDDEN_SYSCALL) /* a guest that has not begun asks for nothing */
        event = (struct vm_event){.kind = EVENT_SETUP_FAILED, .number = STEP_OUTER_FILTER, .os_error = EPERM};
    ending.status = end_tell(&event, &sandbox_words, stopped_by, self.time_over, &reader);
    ending.worded = true;
    finish();
}

/* A handler's. From here on whoever reads has a second; while an end is written, for the rest of it. */
_Noreturn void alone_stop(int number)
{
    ending.hurried = true;
    if (ending.worded)
        finish();
    if (ending.decided)
        alone_end(0);
    the_vm.shared->event = (struct vm_event){.kind = EVENT_STOPPED};
    alone_end(number);
}

void alone_refuse_missing(uint32_t layers)
{
    const uint32_t missing = self.required & ~(self.layers | layers);
    if (!missing)
        return;
    net_leave_headers(&the_vm);
    ending.status = end_tell_missing(missing, &sandbox_words, &reader);
    ending.decided = ending.worded = true;
    finish();
}

/* ---- on the way */

void alone_network(void)
{
    char text[NET_NEWS_BYTES];
    for (uint32_t next = 0; net_news(&the_vm, &next, NULL, text);) {
        char line[NET_NEWS_BYTES + sizeof self.program + 4];
        const int length = snprintf(line, sizeof line, "%s: %s\n", self.program, text);
        size_t written = 0;
        write_text(line, (size_t)length, &written, now_ns() + HURRY_NS);
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
