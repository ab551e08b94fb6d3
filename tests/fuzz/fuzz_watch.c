/*
 * The host's side of the sandbox under libFuzzer (machine/sandbox/watch.c): what a hijacked process
 * may send.
 *
 * The input is steps of 2 bytes, what to do and how: bytes on the control socket, an event in
 * shared memory (its bytes follow), a stop, a signal, the end of the process or of its socket, and
 * the calls of the process that holds the VM.
 *
 * A model predicts the result of each call: which event is believed, what the program is sent,
 * which isolation layers are reported, whether the process was reaped. At the end there is no extra
 * descriptor and no extra child.
 *
 * A call that would wait for its time limit is not made here, but in tests/native/test_watch.c: a
 * stop is followed by the end of the socket, and a wait finds something.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../native/devices.h"
#include "exit_report.h"
#include "must.h"
#include "runner.h"
#include "spawn.h"

#define ENDS_IT   SIGVTALRM /* libFuzzer's handlers ignore it, and it leaves no core */
#define STEPS_MAX 64u
#define WORDS_MAX 256u

static struct vm vm;
static struct sandbox sandbox;
static int peer; /* the program's end of the control socket */
static int process;

static struct model {
    bool ready, started, stop_asked, stopping, signal, closed, ended, dead;
    uint32_t isolation;
    uint32_t told; /* GOs that the program has not read yet */
    size_t count, taken;
    uint8_t words[WORDS_MAX];
    struct vm_event event; /* the last event that the VM's holder received */
} model;

/* The process. Only its life and its end matter. It shares our memory, so that it is created quickly. */
static __attribute__((no_sanitize("address", "undefined", "coverage"))) int live(void *unused)
{
    long answer;
    (void)unused;
    __asm__ volatile("syscall"
                     : "=a"(answer)
                     : "0"(SYS_prctl), "D"(PR_SET_PDEATHSIG), "S"(SIGKILL)
                     : "rcx", "r11", "memory");
    for (;;)
        __asm__ volatile("syscall" : "=a"(answer) : "0"(SYS_pause) : "rcx", "r11", "memory");
}

static void on_signal(int number)
{
    (void)number;
    MUST(model.signal);
    model.signal = false;
}

static void set_up(void)
{
    static uint8_t stack[16384] __attribute__((aligned(16)));
    int pair[2];
    memset(&model, 0, sizeof model);
    memset(&vm, 0, sizeof vm);
    MUST(vm_init(&vm) == 0 && sandbox_init(&sandbox, &vm, NULL) == 0);
    vm.devices[1] = net_on(-1, (struct net_device){0}); /* a TAP */
    vm.device_end = 2;
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    sandbox.control_fd = pair[0];
    peer = pair[1];
    sandbox.pid = clone(live, stack + sizeof stack, CLONE_VM | CLONE_PIDFD | SIGCHLD, NULL, &sandbox.pidfd);
    MUST(sandbox.pid > 0);
    process = sandbox.pid;
}

static void tear_down(void)
{
    close(peer);
    sandbox_release(&sandbox);
    vm_release(&vm);
    MUST(waitpid(process, NULL, WNOHANG) < 0 && errno == ECHILD);
}

/* ---- the model */

static bool is_believed(const struct vm_event *event)
{
    static const bool sandboxes_own[] = {
        [EVENT_HALT] = true,           [EVENT_TRANSLATION_FAULT] = true,
        [EVENT_BAD_PORT] = true,       [EVENT_BAD_HYPERCALL] = true,
        [EVENT_UNHANDLED_EXIT] = true, [EVENT_UNSUPPORTED_INSTRUCTION] = true,
        [EVENT_HOST_ERROR] = true,     [EVENT_FORBIDDEN_SYSCALL] = true,
        [EVENT_HANDLER_FAULT] = true,
    };
    if (event->instruction_bytes > 16)
        return false;
    if (event->kind == EVENT_CONSOLE)
        return vm.console.fd == CONSOLE_PYTHON && event->len <= CONSOLE_PIECE_MAX;
    if (event->kind == EVENT_NETWORK)
        return true;
    if (event->kind == EVENT_STOPPED)
        return model.stop_asked;
    if (event->kind == EVENT_SETUP_FAILED)
        return !model.ready;
    if (event->kind == EVENT_BAD_ACCESS)
        return (event->number >= 1 && event->number <= 8) || event->number == 16 || event->number == 17;
    return event->kind < sizeof sandboxes_own && sandboxes_own[event->kind];
}

static bool model_readable(void)
{
    return model.taken < model.count || model.closed;
}

/* READY and its two bytes. Returns false if they are not all there; then what was there has been taken. */
static bool model_ready(void)
{
    const size_t left = model.count - model.taken;
    if (left < 2) {
        model.taken = model.count;
        return false;
    }
    const uint32_t layers = model.words[model.taken] | (uint32_t)model.words[model.taken + 1] << 8;
    model.taken += 2;
    model.isolation |= layers & ISOLATION_OF_THE_PROGRAM;
    model.ready = true;
    return true;
}

static struct vm_event model_end(bool nonsense)
{
    const int died_of = model.dead ? ENDS_IT : SIGKILL;
    model.dead = true;
    if (model.stopping)
        return (struct vm_event){.kind = EVENT_STOPPED};
    if (nonsense)
        return (struct vm_event){.kind = EVENT_HANDLER_FAULT};
    return (struct vm_event){.kind = EVENT_PROCESS_DIED, .detail = (uint64_t)died_of};
}

static struct vm_event model_event(void)
{
    if (!model.ready && vm.shared->event.kind == EVENT_FORBIDDEN_SYSCALL)
        return (struct vm_event){
            .kind = EVENT_SETUP_FAILED, .number = SANDBOX_STEP_OUTER_FILTER, .os_error = EPERM};
    return is_believed(&vm.shared->event) ? vm.shared->event : (struct vm_event){.kind = EVENT_HANDLER_FAULT};
}

static struct vm_event model_run(void)
{
    if (!model.started && model.stop_asked)
        return (struct vm_event){.kind = EVENT_STOPPED};
    if (!model.started || model.event.kind == EVENT_CONSOLE || model.event.kind == EVENT_NETWORK)
        model.told++;
    model.started = true;
    for (;;) {
        const bool readable = model_readable();
        if (!readable && (model.stopping || !model.stop_asked))
            return (struct vm_event){.kind = EVENT_INTERRUPTED};
        model.stopping |= model.stop_asked;
        if (!readable)
            continue;
        if (model.taken == model.count)
            return model_end(false);
        const uint8_t word = model.words[model.taken++];
        if (word == SANDBOX_EVENT)
            return model_event();
        if (word != SANDBOX_READY || model.ready || !model_ready())
            return model_end(true);
    }
}

/* ---- the calls */

static void check_line(const struct vm_event *event)
{
    struct exit_report report;
    memset(&report, 'x', sizeof report);
    exit_report_fill(event, machine_by_name("sandbox")->words, false, TOLD_LIBRARY, &report);
    const size_t len = strnlen(report.message, sizeof report.message);
    MUST(len < sizeof report.message && !memchr(report.message, '\n', len) && report.reason &&
         *report.reason);
}

static void run(void)
{
    if (model.stop_asked && model.started && !model.closed) {
        MUST(shutdown(peer, SHUT_WR) == 0);
        model.closed = true;
    }
    const struct model before = model;
    const struct vm_event expected = model_run();
    if (expected.kind == EVENT_INTERRUPTED && !model.signal) { /* it would wait forever */
        model = before;
        return;
    }
    sandbox_run(&sandbox);
    MUST(memcmp(&sandbox.event, &expected, sizeof expected) == 0 && vm.event == &sandbox.event);
    model.event = expected;
    model.ended = event_ends_run(expected.kind);
    MUST(!model.ended || !model.started || vm.shared->timeline.guest_exit);
    memset(&vm.shared->event, 0xff, sizeof vm.shared->event); /* the received event stays unchanged */
    MUST(memcmp(&sandbox.event, &expected, sizeof expected) == 0);
    if (model.ended && expected.kind != EVENT_SETUP_FAILED)
        check_line(&expected);
}

static void ask_isolation(void)
{
    if (!model.ready && !model_readable())
        return;
    if (!model.ready && model.taken < model.count && model.words[model.taken] == SANDBOX_READY) {
        model.taken++;
        (void)model_ready();
    }
    MUST(sandbox_isolation(&sandbox) == model.isolation);
}

static void read_memory(uint8_t how)
{
    uint8_t bytes[64];
    const uint64_t gpa = 0x10000 + how * 8u, len = how % sizeof bytes;
    if (!model.started && !model_readable())
        ((struct sandbox_config *)(void *)(sandbox.mapping + SANDBOX_CONFIG_OFFSET))->prepared = 1;
    const int64_t got = sandbox_read(&sandbox, gpa, bytes, len);
    MUST(got <= (int64_t)len && got >= -4095);
}

static void say_words(const uint8_t *data, size_t count)
{
    if (model.closed || model.count + count > WORDS_MAX)
        return;
    memcpy(model.words + model.count, data, count);
    model.count += count;
    MUST(send(peer, data, count, MSG_NOSIGNAL) == (ssize_t)count);
}

static void hear(void)
{
    uint8_t words[WORDS_MAX];
    const ssize_t got = recv(peer, words, sizeof words, MSG_DONTWAIT);
    MUST((got < 0 ? 0 : got) == (ssize_t)model.told);
    for (ssize_t i = 0; i < got; i++)
        MUST(words[i] == SANDBOX_GO);
    model.told = 0;
}

static void end_process(void)
{
    siginfo_t about;
    if (model.dead)
        return;
    MUST(kill(sandbox.pid, ENDS_IT) == 0);
    MUST(waitid(P_PID, (id_t)sandbox.pid, &about, WEXITED | WNOWAIT) == 0);
    model.dead = true;
}

static void report(uint8_t how, const uint8_t **data, size_t *size)
{
    struct vm_event event = {.kind = how};
    size_t taken = *size < sizeof event - 4 ? *size : sizeof event - 4;
    if (how & 0x80) { /* a valid one, except for the fields that a check looks at */
        event = (struct vm_event){.kind = how & 31, .number = 1};
        taken = *size < 3 ? *size : 3;
        if (taken == 3) {
            event.number = (*data)[0] % 20;
            event.len = CONSOLE_PIECE_MAX - 8 + (*data)[1] % 16;
            event.instruction_bytes = 16u + (*data)[2] % 2;
        }
    } else {
        memcpy((uint8_t *)&event + 4, *data, taken);
    }
    *data += taken;
    *size -= taken;
    vm.shared->event = event;
}

static void step(uint8_t what, uint8_t how, const uint8_t **data, size_t *size)
{
    static const uint8_t usual[] = {'e', 'r', 'g', 0};
    const uint8_t ready[] = {SANDBOX_READY, how, (uint8_t)~how};
    switch (what % 12) {
    case 0:
        say_words(&usual[how % sizeof usual], 1);
        break;
    case 1:
        say_words(&how, 1);
        break;
    case 2:
        say_words(ready, how % 8 ? sizeof ready : 1u + how / 8 % 2);
        break;
    case 3:
        report(how, data, size);
        break;
    case 4:
        vm_stop(&vm);
        model.stop_asked = true;
        break;
    case 5:
        if (!model.signal) {
            model.signal = true;
            (void)raise(SIGUSR1);
        }
        break;
    case 6:
        if (!model.closed)
            MUST(shutdown(peer, SHUT_WR) == 0);
        model.closed = true;
        break;
    case 7:
        end_process();
        break;
    case 8:
        ask_isolation();
        break;
    case 9:
        read_memory(how);
        break;
    case 10:
        hear();
        break;
    default:
        run();
    }
}

/* One bit for each of the first 64, which are those that an input can open. */
static uint64_t open_descriptors(void)
{
    uint64_t set = 0;
    for (int fd = 0; fd < 64; fd++)
        set |= fcntl(fd, F_GETFD) >= 0 ? UINT64_C(1) << fd : 0;
    return set;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool caught;
    if (!caught)
        MUST(signal(SIGUSR1, on_signal) != SIG_ERR);
    caught = true;
    if (!size)
        return 0;
    const uint64_t open_before = open_descriptors();
    set_up();
    vm.console.fd = *data & 1 ? CONSOLE_PYTHON : CONSOLE_DISCARD;
    data++;
    size--;
    vm_hold_signals(); /* a signal that comes now ends the next wait */
    for (unsigned i = 0; i < STEPS_MAX && size >= 2 && !model.ended; i++) {
        const uint8_t what = data[0], how = data[1];
        data += 2;
        size -= 2;
        step(what, how, &data, &size);
        MUST(sandbox.ready == model.ready && sandbox.isolation == model.isolation);
        MUST(sandbox.stopping == model.stopping && sandbox.started == model.started);
    }
    hear();
    vm_release_signals();
    MUST(!model.signal);
    tear_down();
    MUST(open_descriptors() == open_before);
    return 0;
}
