/*
 * One run: image, devices, a machine, the guest, and how it ended. It does the work of tender/cli/run.py,
 * vm.py and the backends for a VM that is made once: no template is kept, and the image is read directly
 * to where the guest will find it.
 *
 * Signals: the first SIGINT or SIGTERM stops the guest, a second one kills the process. There is one thread.
 * Signal handlers run only where it lets them in: in the waits of the backends (machine/runner.h), which then
 * return here.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "console.h"
#include "device.h"
#include "exit_report.h"
#include "image_memory.h"
#include "launcher.h"
#include "lifecycle.h"
#include "observer.h"
#include "runner.h"
#include "start_state.h"
#include "tsc.h"

#define PAGES_AT_ONCE_MIN 32
#define WORDS_SHOWN_MAX   16384 /* bytes on a stack of 64 KiB, including pointers */

/* The one run of this process. Signal handlers get no argument, so these are global. */
static struct vm vm;
static struct machine machine;
static struct machine_choice choice;
static volatile sig_atomic_t caught;    /* SIGINT or SIGTERM */
static volatile sig_atomic_t over_time; /* SIGALRM */
static bool ignores_interrupts; /* SIGINT is ignored, as a shell does for programs in the background */

static struct image {
    const char *name;
    int fd;
    struct elf_image elf;
} image;

static void handle(int number, void (*handler)(int), int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    (void)sigaction(number, &action, NULL);
}

/* Used around the access to files before the guest runs: a file system may be slow. The first SIGINT or
 * SIGTERM ends such a wait, and so ends the command. */
static void mask_stops(int how)
{
    sigset_t stops;
    sigemptyset(&stops);
    sigaddset(&stops, SIGINT);
    sigaddset(&stops, SIGTERM);
    (void)sigprocmask(how, &stops, NULL);
}

static bool interrupts_are_ignored(const struct request *request)
{
    struct sigaction now;
    return sigaction(SIGINT, NULL, &now) == 0 && now.sa_handler == SIG_IGN && !request->solo5;
}

/* ---- the image */

static _Noreturn void refuse_image(const struct elf_error *error)
{
    leave_to_python("%s: %s%s%s", shown(image.name), error->text, error->os_error ? ": " : "",
                    error->os_error ? strerror(error->os_error) : "");
}

static void open_image(const char *name)
{
    struct elf_error error;
    struct device_error refused;
    image.name = name;
    image.fd = file_open(name, FILE_IMAGE, &refused);
    if (image.fd < 0)
        leave_to_python("%s: %s", shown(name), refused.text);
    static struct byte_window window;
    const struct byte_source source = byte_source_window(&window, image.fd);
    if (elf_image_parse(&source, &image.elf, &error) < 0)
        refuse_image(&error);
}

/* Populates the pages of a large segment in one call, which costs less than one fault per page. For a few
 * pages it does not cost less. */
static void make_pages(uint8_t *memory)
{
    const struct byte_source source = byte_source_file(image.fd);
    for (uint32_t i = 0; i < image.elf.segment_count; i++) {
        const struct elf_segment *s = &image.elf.segments[i];
        const uint64_t bytes = s->vaddr + s->file_bytes - s->start;
        if (bytes >= PAGES_AT_ONCE_MIN * HVT_PAGE_BYTES && start_state_is_whole(s, &source))
            (void)madvise(memory + s->start, bytes, MADV_POPULATE_WRITE);
    }
}

/* load() of struct machine_plan */
static void load_segments(uint8_t *memory, bool at_once)
{
    struct elf_error error;
    const struct byte_source source = byte_source_file(image.fd);
    if (at_once)
        make_pages(memory);
    mask_stops(SIG_UNBLOCK);
    if (start_state_load_segments_at(&image.elf, &source, memory, &error) < 0)
        refuse_image(&error);
    mask_stops(SIG_BLOCK);
}

/* Joins the arguments with single spaces. */
static size_t join(char *const *words, char line[HVT_CMDLINE_BYTES])
{
    size_t at = 0;
    for (; *words; words++) {
        size_t len = strlen(*words);
        if (at + len + 1 >= HVT_CMDLINE_BYTES)
            leave_to_python(says_args_too_long, HVT_CMDLINE_BYTES - 1);
        memcpy(line + at, *words, len);
        at += len;
        if (words[1])
            line[at++] = ' ';
    }
    line[at] = '\0';
    return at;
}

/* Returns this command's arguments as the guest's process shows them, where the guest can read them: without
 * the directories of the host's files, and no more than fit on their stack. */
static const char *const *arguments_to_show(void)
{
    size_t count = 0, at = 0, bytes = 0;
    while (the_command.words[count])
        count++;
    const char **shown_arguments = calloc(count + 3, sizeof *shown_arguments);
    if (!shown_arguments)
        leave_to_python("no memory for the arguments of the guest's process");
    const bool is_front = *the_command.words == the_command.program; /* that name is the first argument */
    shown_arguments[at++] = the_command.program;
    bool of_guest = false;
    for (char **word = the_command.words + is_front; *word; word++) {
        const char *slash = of_guest ? NULL : strrchr(*word, '/');
        const bool is_option = *word != image.name && strncmp(*word, "--", 2) == 0;
        const char *value = is_option ? strchr(*word, '=') : NULL; /* else it is a value, or the image */
        of_guest = of_guest || *word == image.name;
        bytes += sizeof *word + strlen(*word) + 1;
        if (bytes > WORDS_SHOWN_MAX) {
            shown_arguments[at] = "...";
            break;
        }
        if (!slash)
            shown_arguments[at++] = *word;
        else if (!value || value > slash)
            shown_arguments[at++] = slash + 1;
        else {
            char *cut;
            if (asprintf(&cut, "%.*s%s", (int)(value + 1 - *word), *word, slash + 1) < 0)
                leave_to_python("no memory for the arguments of the guest's process");
            shown_arguments[at++] = cut;
        }
    }
    return shown_arguments;
}

/* ---- the machine */

static char *find_program(const char *program)
{
    char *found = find_in_package(program);
    if (found)
        return found;
    const char *places = package_places();
    leave_to_python("%s cannot be found: it is not in %s; %s", program, places ? places : "(no memory)",
                    unreadable_package ? UNREADABLE_HINT : COPY_HINT);
}

/* Makes the machine that was requested, or the first one that is available. */
static void make_machine(const struct request *request, const struct machine_plan *plan)
{
    static struct machine_error error;
    const struct machine_ops *ops;
    machine.vm = &vm;
    while ((ops = machine_choose(&choice, request->backend, &error))) {
        if (!ops->confine)
            net_helper_end(); /* this process keeps its rights */
        if (machine_open(&machine, ops, plan, &error) == 0)
            return;
    }
    leave_to_python("%s", error.text);
}

static uint64_t began_ns, vm_created_ns; /* for the report; 0 if there is none */

/* Whether ppoll is refused. Then our own filter must allow the calls that replace it (inherited_filter.c). */
static bool waits_are_refused(void)
{
    const struct timespec at_once = {0, 0};
    (void)ppoll(NULL, 0, &at_once, NULL);
    return under_inherited_filter;
}

/* Returns which isolation layers are in force. A machine is not asked, and not waited for, if that is not
 * needed. */
static uint32_t isolate(const struct request *request)
{
    if (machine.ops->confine) {
        const struct confinement keeps = {
            waits_are_refused(), {stderr_output(), report_output()}, observer_fd()};
        return machine.ops->confine(&machine, &keeps);
    }
    return request->require ? machine.ops->isolation(&machine) : 0;
}

/* ---- signals */

/* vm_stop() without its lock, which the interrupted thread may hold, and without its kick: the signal that
 * called this handler has already ended the wait. If signals cannot be blocked (inherited_filter.c), the
 * signal may also have come just before a wait. Then the descriptor ends that wait, or KVM_RUN's own flag
 * does. */
static void stop_soon(void)
{
    static const struct itimerspec at_once = {.it_value = {.tv_nsec = 1}};
    const uint64_t one = 1;
    atomic_store(&vm.stop_requested, true);
    if (machine.ops->kick)
        machine.ops->kick(&machine);
    if (write(vm.stop_fd, &one, sizeof one) < 0)
        (void)timerfd_settime(vm.stop_fd, 0, &at_once, NULL); /* it is a timer's (inherited_filter.c) */
}

static void on_stop(int number)
{
    int saved = errno;
    caught = number;
    hurried = 1;
    devices_leave(); /* now, because the next signal kills the process at any moment */
    if (!ignores_interrupts)
        handle(SIGINT, SIG_DFL, 0); /* the next signal kills the process */
    handle(SIGTERM, SIG_DFL, 0);
    if (observer_fd() >= 0)
        handle(SIGQUIT, SIG_DFL, 0);
    stop_soon();
    errno = saved;
}

static void on_time_over(int number)
{
    (void)number;
    int saved = errno;
    over_time = hurried = 1;
    stop_soon();
    errno = saved;
}

/* A terminal's ^Z when the guest is another process: both stop, and both continue. */
static void on_suspend(int number)
{
    int saved = errno;
    machine.ops->pause(&machine, true);
    handle(number, SIG_DFL, 0);
    (void)raise(number); /* returns when this process goes on */
    handle(number, on_suspend, SA_NODEFER);
    machine.ops->pause(&machine, false);
    errno = saved;
}

static void on_kick(int number)
{
    (void)number;
    if (machine.ops->kick)
        machine.ops->kick(&machine);
}

/* The signals that end a run, whatever mask this process was started with: SIGINT, SIGTERM, the time
 * limit. */
static void change_mask(int how, bool ends, bool kick)
{
    sigset_t ours;
    sigemptyset(&ours);
    if (ends) {
        sigaddset(&ours, SIGINT);
        sigaddset(&ours, SIGTERM);
        sigaddset(&ours, SIGALRM);
    }
    if (kick)
        sigaddset(&ours, VM_KICK_SIGNAL);
    (void)sigprocmask(how, &ours, NULL);
}

void signals_prepare(void)
{
    change_mask(SIG_BLOCK, true, true);
    handle(SIGPIPE, SIG_IGN, 0); /* if the console or stderr has no reader, only the bytes are lost */
    /* a file at its size limit is an error to report; for a disk, the guest gets the error */
    handle(SIGXFSZ, SIG_IGN, 0);
}

void signals_let_in(void)
{
    change_mask(SIG_UNBLOCK, true, true);
}

static void on_hurry(int number)
{
    hurried = 1;
    handle(number, SIG_DFL, 0); /* the next signal kills the process */
}

void signals_let_in_to_hurry(void)
{
    struct sigaction now;
    if (sigaction(SIGINT, NULL, &now) < 0 || now.sa_handler != SIG_IGN)
        handle(SIGINT, on_hurry, 0);
    handle(SIGTERM, on_hurry, 0);
    handle(SIGALRM, on_hurry, 0);
    signals_let_in();
}

void signals_hand_over(void)
{
    change_mask(SIG_BLOCK, true, false);   /* again, if a guest has run */
    change_mask(SIG_UNBLOCK, false, true); /* Python does not know about the kick */
}

static void on_first(int number)
{
    caught = number;
    hurried = 1;
    if (!ignores_interrupts)
        handle(SIGINT, SIG_DFL, 0);
    handle(SIGTERM, SIG_DFL, 0);
}

/* Installs the handlers, unless a signal has already come: then the next one kills. */
static void install_stop_handlers(const struct request *request, void (*handler)(int))
{
    if (caught)
        return;
    if (interrupts_are_ignored(request))
        ignores_interrupts = true; /* solo5-hvt handles SIGINT even if it is ignored */
    handle(SIGTERM, handler, 0);
    if (!ignores_interrupts)
        handle(SIGINT, handler, 0);
}

const char *image_name(void)
{
    return image.name ? image.name : "";
}

int signal_caught(void)
{
    return caught;
}

static void expect_signals(const struct request *request)
{
    struct sigaction now;
    install_stop_handlers(request, on_stop);
    if (caught) {
        devices_leave();
        stop_soon();
    }
    if (!machine.ops->pause) {
        handle(VM_KICK_SIGNAL, on_kick, 0); /* the ring's worker has found an event that ends the run */
        runner_of(&vm)->signals_at_will = true;
    } else if (!machine.reports_own_end && sigaction(SIGTSTP, NULL, &now) == 0 && now.sa_handler == SIG_DFL)
        handle(SIGTSTP, on_suspend, SA_NODEFER);
    if (request->timeout_s > 0)
        handle(SIGALRM, on_time_over, 0);
    if (observer_fd() >= 0)
        handle(SIGQUIT, on_stop, 0); /* not a core of this process, but one of the guest */
    signals_let_in();
    if (request->timeout_s > 0) {
        struct itimerval limit = {0};
        limit.it_value.tv_sec = (time_t)request->timeout_s;
        limit.it_value.tv_usec = (suseconds_t)((request->timeout_s - (double)limit.it_value.tv_sec) * 1e6);
        if (!limit.it_value.tv_sec && !limit.it_value.tv_usec)
            limit.it_value.tv_usec = 1;
        (void)setitimer(ITIMER_REAL, &limit, NULL);
    }
}

/* ---- the end */

void devices_leave(void)
{
    net_leave_headers(&vm);
}

/* Releases what would outlive this process: parts of machine and devices. */
static void release_machine(void)
{
    if (!machine.ops->leave)
        machine.ops->close(&machine);
    devices_leave();
}

static _Noreturn void leave(int status)
{
    if (machine.ops->leave)
        machine.ops->leave(&machine);
    _exit(status);
}

static void say_line(const char *line)
{
    say("%s", line);
}

static void say_nothing(const char *hint)
{
    (void)hint;
}

static struct exit_reader reader_of(const struct request *request)
{
    return (struct exit_reader){say_line, request->solo5 ? say_nothing : say_hint, machine.program};
}

static struct report_about about_run(int stopped_by, uint32_t isolation)
{
    return (struct report_about){.image = image.name,
                                 .signal = stopped_by == SIGALRM ? 0 : stopped_by,
                                 .backend = machine.ops->name,
                                 .isolation = isolation,
                                 .start_ns = began_ns,
                                 .vm_created_ns = vm_created_ns};
}

static _Noreturn void end(const struct request *request, uint32_t layers)
{
    const struct vm_event event = *vm.event;
    const struct vm_shared shared = *vm.shared;
    const struct exit_reader reader = reader_of(request);
    const uint32_t isolation =
        request->json && !machine.ops->confine ? machine.ops->isolation(&machine) : layers;
    char time_is_over[96];
    struct told_exit told;
    (void)snprintf(time_is_over, sizeof time_is_over, says_time_over, request->timeout_s);
    const bool is_observed = observer_fd() >= 0;
    if (is_observed)
        devices_leave();
    else
        release_machine();
    const int stopped_by = caught ? caught : over_time ? SIGALRM : 0;
    exit_report_tell(&event, machine.ops->words, stopped_by, time_is_over, &reader, &told);
    const struct report_about about = about_run(stopped_by, isolation);
    report_prepare(&about, &told, &event, &shared);
    if (event.kind != EVENT_PROCESS_DIED)
        observer_tell(!exit_is_abnormal(&event, stopped_by)                  ? OBSERVER_NOTHING
                      : event.kind == EVENT_STOPPED && stopped_by == SIGALRM ? OBSERVER_TIMEOUT
                                                                             : OBSERVER_LOOK);
    if (is_observed)
        release_machine();
    report_end();
    leave(told.status);
}

/* Called before the guest's first instruction. Not left to Python: on KVM it cannot be executed any more. */
static void refuse_missing_layers(const struct request *request, uint32_t layers)
{
    const uint32_t missing = request->require & ~layers;
    const struct exit_reader reader = reader_of(request);
    struct told_exit told;
    if (!missing)
        return;
    exit_report_tell_missing(missing, machine.ops->words, &reader, &told);
    observer_tell(OBSERVER_NOTHING);
    release_machine();
    const struct report_about about = about_run(0, layers);
    report_prepare(&about, &told, NULL, NULL);
    report_end();
    leave(told.status);
}

static void say_net_news(void)
{
    char text[NET_NEWS_BYTES];
    for (uint32_t next = 0;
         net_news(&vm, &next, machine.ops->confine ? net_helper_attach : net_attach_here, text);)
        say_notice("%s", text);
}

void run(const struct request *request)
{
    static struct devices devices;
    static char line[HVT_CMDLINE_BYTES];
    struct elf_error too_small;

    const uint32_t ring_wanted = request->no_net_ring ? RING_NONE : RING_ADAPTIVE;
    const struct machine_ops *const expected = machine_expected(request->backend);
    tsc_sample(); /* early: arch/x86_64/tsc.h */
    if (request->json)
        began_ns = monotonic_ns();
    install_stop_handlers(request, on_first);
    mask_stops(SIG_UNBLOCK);
    image.name = request->image;
    report_open(request);
    open_image(request->image);
    size_t line_bytes = join(request->args, line);
    if (elf_image_fits(&image.elf, request->mem_bytes, &too_small) < 0)
        refuse_image(&too_small);
    int error = vm_init(&vm);
    if (error < 0)
        leave_to_python("no memory for a VM");
    vm_list_add(&vm);
    devices_attach(request, &image.elf, &vm,
                   machine_ring_mode(expected, &image.elf, request->mem_bytes, ring_wanted), &devices);
    const int console_fd = console_open(request);
    if (console_set(&vm, console_fd) < 0)
        leave_to_python("console: %d: %s", console_fd, strerror(errno));
    mask_stops(SIG_BLOCK);

    if (request->net_reattach && expected->confine && (error = net_helper_begin(&vm)) < 0)
        leave_to_python("--net-reattach: a helper process cannot be started: %s", strerror(-error));
    if ((error = observer_begin(request)) < 0)
        leave_to_python("a helper process for the guest's end cannot be started: %s", strerror(-error));
    const struct machine_alone alone = {
        .program = the_command.program,
        .words = arguments_to_show,
        .timeout_s = request->timeout_s,
        .required = request->require,
        .hints = !request->solo5,
        .ignores_interrupts = interrupts_are_ignored(request),
        .errors = stderr_output,
        .report = report_output(),
        .report_name = report_name(),
        .image = image.name,
        .start_ns = began_ns,
        .observer_fd = observer_fd(),
    };
    const struct machine_plan plan = {
        .image = &image.elf,
        .name = image.name,
        .path = image.name,
        .debuggable = request->debuggable,
        .flight_recorder = request->flight_recorder,
        .manifest = &devices.manifest,
        .mem_bytes = request->mem_bytes,
        .ring_mode = ring_wanted,
        .cmdline = line,
        .cmdline_bytes = line_bytes,
        .template_fd = -1,
        .load = load_segments,
        .find = find_program,
        .alone = request->net_reattach ? NULL : &alone, /* a confined process cannot attach a network again */
        .observer = observer_pid(),
    };
    make_machine(request, &plan);
    report_begin();
    if (request->json)
        vm_created_ns = monotonic_ns();
    close(image.fd);
    expect_signals(request);
    if (request->mem_adjusted && !request->quiet)
        say_notice(says_memory_adjusted, request->mem_bytes);
    const uint32_t layers = machine.reports_own_end ? machine.possible_layers : isolate(request);
    refuse_missing_layers(request, layers);
    /* solo5-hvt's managers keep stderr as the guest's console; a person reads stderr at a terminal. */
    if (choice.title && !request->quiet && (!request->solo5 || isatty(STDERR_FILENO)))
        say_notice("%s", choice.notice);
    do {
        machine.ops->run(&machine);
        if (vm.event->kind == EVENT_NETWORK)
            say_net_news();
    } while (!event_ends_run(vm.event->kind));
    end(request, layers);
}
