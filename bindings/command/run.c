/*
 * One run: image, devices, a door, the guest, and how it ended. What tender/cli/run.py, vm.py and the
 * backends do, for a VM that is made once: no template is kept, the image is read to where the guest will
 * find it.
 *
 * Signals: the first SIGINT or SIGTERM stops the guest, a second one kills the process. There is one thread,
 * and handlers run only where it lets them: behind the waits of the doors (core/vm.h), which then come back
 * here.
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

#include "ahead.h"
#include "console.h"
#include "copy_fault.h"
#include "device.h"
#include "ends.h"
#include "image_memory.h"
#include "kvm_machine.h"
#include "launcher.h"
#include "layers.h"
#include "leave_behind.h"
#include "patch.h"
#include "rights.h"
#include "ring.h"
#include "run_kvm.h"
#include "spawn.h"
#include "start_state.h"
#include "tsc.h"

#define PAGES_AT_ONCE_MIN 32

/* The one run of this process: signal handlers have nothing else to go by. */
static struct vm vm;
static struct sandbox sandbox;
static struct door {
    bool is_kvm;
    struct kvm_machine machine;
    struct left_behind left;
    char fallback[256]; /* why it is not KVM although nobody asked for that; empty: it was asked for */
} door = {.machine = {.kvm_fd = -1, .vm_fd = -1, .vcpu_fd = -1}, .left = {-1, -1, -1}};
static volatile sig_atomic_t caught;    /* SIGINT or SIGTERM */
static volatile sig_atomic_t over_time; /* SIGALRM */
static bool deaf_to_interrupts; /* SIGINT is ignored, as a shell has it for what runs in the background */

struct image {
    const char *name;
    int fd;
    struct elf_image elf;
};

static void handle(int number, void (*handler)(int), int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    (void)sigaction(number, &action, NULL);
}

/* Around what files are asked for before the guest runs: a file system may take its time, and the first
 * SIGINT or SIGTERM ends such a wait, and with it the command. */
static void let_stops_in(int how)
{
    sigset_t stops;
    sigemptyset(&stops);
    sigaddset(&stops, SIGINT);
    sigaddset(&stops, SIGTERM);
    (void)sigprocmask(how, &stops, NULL);
}

/* ---- the image */

static _Noreturn void refuse_image(const struct image *image, const struct elf_error *error)
{
    leave_to_python("%s: %s%s%s", shown(image->name), error->text, error->os_error ? ": " : "",
                    error->os_error ? strerror(error->os_error) : "");
}

static void open_image(struct image *image, const char *name)
{
    struct elf_error error;
    struct device_error refused;
    image->name = name;
    image->fd = file_open(name, FILE_IMAGE, &refused);
    if (image->fd < 0)
        leave_to_python("%s: %s", shown(name), refused.text);
    static struct byte_window window;
    const struct byte_source source = byte_source_window(&window, image->fd);
    if (elf_image_parse(&source, &image->elf, &error) < 0)
        refuse_image(image, &error);
}

/* The pages of a large segment at once, which costs less than a fault each; with a few pages it does not. */
static void make_pages(const struct image *image, uint8_t *memory)
{
    const struct byte_source source = byte_source_file(image->fd);
    for (uint32_t i = 0; i < image->elf.segment_count; i++) {
        const struct elf_segment *s = &image->elf.segments[i];
        const uint64_t bytes = s->vaddr + s->file_bytes - s->start;
        if (bytes >= PAGES_AT_ONCE_MIN * HVT_PAGE_BYTES && start_state_is_whole(s, &source))
            (void)madvise(memory + s->start, bytes, MADV_POPULATE_WRITE);
    }
}

static void load_segments(const struct image *image, uint8_t *memory)
{
    struct elf_error error;
    const struct byte_source source = byte_source_file(image->fd);
    let_stops_in(SIG_UNBLOCK);
    if (start_state_load_segments_at(&image->elf, &source, memory, &error) < 0)
        refuse_image(image, &error);
    let_stops_in(SIG_BLOCK);
}

/* The words joined with single spaces. */
static size_t join(char *const *words, char line[HVT_CMDLINE_BYTES])
{
    size_t at = 0;
    for (; *words; words++) {
        size_t len = strlen(*words);
        if (at + len + 1 >= HVT_CMDLINE_BYTES)
            leave_to_python("Guest command line too long (max=%d characters)", HVT_CMDLINE_BYTES - 1);
        memcpy(line + at, *words, len);
        at += len;
        if (words[1])
            line[at++] = ' ';
    }
    line[at] = '\0';
    return at;
}

/* ---- KVM */

static bool exists(const char *path)
{
    struct stat about;
    return stat(path, &about) == 0;
}

/* As tender/backend/__init__.py has it: a KVM without a vendor's module under it interprets guests in
 * software. */
static bool kvm_is_fit(void)
{
    return exists("/sys/module/kvm_intel") || exists("/sys/module/kvm_amd") || !exists("/sys/module/kvm") ||
           !exists("/dev/kvm");
}

/* False: no KVM here, and the sandbox may be taken in its place. */
static bool no_kvm(const struct request *request, const struct machine_error *error)
{
    kvm_machine_close(&door.machine);
    guest_memory_unmap(&vm.memory);
    vm.ring.shared = NULL;
    if (request->backend == BACKEND_KVM || !error->elsewhere)
        leave_to_python("%s", error->text);
    (void)snprintf(door.fallback, sizeof door.fallback, "%s", error->text);
    return false;
}

static uint32_t ring_wanted(const struct request *request, const struct elf_image *image)
{
    return request->no_net_ring ? (uint32_t)RING_NONE
                                : ring_mode_for(image_end(image), request->mem_bytes, RING_ADAPTIVE);
}

static bool make_machine(const struct request *request, const struct image *image,
                         const struct devices *devices, const char *line, size_t line_bytes)
{
    struct machine_error error;
    if (request->backend == BACKEND_AUTO && !kvm_is_fit()) {
        (void)snprintf(door.fallback, sizeof door.fallback,
                       "/dev/kvm is neither kvm_intel's nor kvm_amd's; `tender doctor` tries it");
        return false;
    }
    if (kvm_machine_open(&door.machine, &error) < 0)
        return no_kvm(request, &error);
    const uint32_t ring = vm.net_count ? ring_wanted(request, &image->elf) : (uint32_t)RING_NONE;
    const uint64_t guest_bytes = request->mem_bytes - (ring == RING_NONE ? 0 : HVT_RING_ROOM_BYTES);
    int refused = guest_memory_reserve(&vm.memory, guest_bytes, request->mem_bytes);
    if (refused < 0)
        leave_to_python("Error allocating guest memory: %s", strerror(-refused));
    if (ring != RING_NONE)
        ring_offer(&vm, (struct hvt_net_ring *)(void *)(vm.memory.hva + guest_bytes), ring);
    vm.extensions = image->elf.extensions;
    /* Said again for all of it once it is loaded (guest_map.c), but it is touched before. */
    (void)madvise(vm.memory.hva, guest_small_pages_end(image_end(&image->elf), guest_bytes), MADV_NOHUGEPAGE);
    make_pages(image, vm.memory.hva);
    start_state_write_tables(vm.memory.hva, request->mem_bytes, image->elf.extensions);
    load_segments(image, vm.memory.hva);
    refused = image_memory_protect(&vm.memory, &image->elf);
    if (refused < 0)
        leave_to_python("Error allocating guest memory: %s", strerror(-refused));
    static struct cpu_state start; /* most of it is for others: pages that nobody touches */
    start_state_registers(image->elf.entry, guest_bytes, &start);
    if (kvm_machine_prepare(&door.machine, &vm, &error) < 0 ||
        kvm_machine_add_vcpu(&door.machine, &error) < 0 ||
        kvm_machine_finish(&door.machine, &start, &error) < 0)
        return no_kvm(request, &error);
    close(door.machine.kvm_fd); /* nothing asks it any more */
    door.machine.kvm_fd = -1;
    start_state_write_boot_info(vm.memory.hva + HVT_BOOT_INFO_GPA, &image->elf, &devices->manifest,
                                guest_bytes, door.machine.tsc_hz, ring == RING_NONE ? 0 : guest_bytes, line,
                                line_bytes);
    door.is_kvm = true;
    return true;
}

/* What stands in for a refused ppoll (stranger.c) makes calls that our own filter would kill for. */
static bool waits_are_refused(void)
{
    const struct timespec at_once = {0, 0};
    (void)ppoll(NULL, 0, &at_once, NULL);
    return filtered_by_stranger;
}

/* What would be done at its first use is done now, because afterwards this process may not. Which
 * isolation layers stand. */
static uint32_t close_the_door(void)
{
    copy_fault_prepare(&vm);
    stderr_prepare();
    if (vm.map_disks)
        vm.map_disks(&vm);
    const bool filtered = waits_are_refused();
    if (!filtered)
        leave_behind_prepare(&door.left);
    give_up_file_growth(&vm);
    uint32_t layers = ISOLATION_KVM | give_up_rights();
    if (vm.ring.shared)
        ring_worker_prepare(&vm);
    return layers | give_up_calls(&door.left, &vm, filtered);
}

/* ---- the sandbox */

static bool will_be_sandbox(const struct request *request)
{
    return request->backend == BACKEND_SANDBOX ||
           (request->backend == BACKEND_AUTO && (!exists("/dev/kvm") || !kvm_is_fit()));
}

static _Noreturn void refuse_sandbox(const char *what, int os_error)
{
    sandbox_release(&sandbox);
    leave_to_python("sandbox: %s: %s", what, strerror(os_error));
}

/* The image as start state with its sites patched, in a memfd for the sandbox's process. It stays mapped:
 * what is begun ahead has this process's memory, so to unmap would be to wait for another processor. */
static int make_template(const struct image *image)
{
    const uint64_t bytes = start_state_template_bytes(&image->elf);
    int fd = memfd_create("tender-image", MFD_CLOEXEC);
    void *memory = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0)
        memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        refuse_sandbox("its template", errno);
    start_state_write_extension(memory, image->elf.extensions);
    load_segments(image, memory);
    (void)patch_template(&image->elf, memory, fd);
    return fd;
}

static void make_sandbox(const struct request *request, const struct image *image,
                         const struct devices *devices, const char *line, size_t line_bytes)
{
    net_helper_end(); /* this process keeps its rights */
    int template_fd = make_template(image);
    handle(SIGCHLD, SIG_DFL,
           0); /* ignored, as whoever started us may have it, nobody tells how a process ended */
    net_leave_segments(&vm);
    int error = sandbox_init(&sandbox, &vm);
    if (error < 0)
        refuse_sandbox("its shared memory", -error);
    char *program = find_in_package("tender-sandbox");
    if (!program) {
        const char *places = package_places();
        sandbox_release(&sandbox);
        leave_to_python("tender-sandbox cannot be found: it is not in %s; %s",
                        places ? places : "(no memory)", unreadable_package ? UNREADABLE_HINT : COPY_HINT);
    }
    error = sandbox_spawn_alone(&sandbox, &image->elf, template_fd, request->mem_bytes, program, image->name);
    if (error < 0)
        refuse_sandbox(program, -error);
    close(template_fd); /* nobody else has it: what the guest maps stays as it is */
    free(program);
    /* While the program starts; it enters the guest when it is told to go on. */
    start_state_write_boot_info(sandbox_boot_info(&sandbox), &image->elf, &devices->manifest,
                                request->mem_bytes, tsc_hz(), 0, line, line_bytes);
}

/* ---- signals */

/* vm_stop() without its lock, which the thread that runs this may hold, and without its kick: the signal that
 * brought us here has ended the wait. Where signals cannot be held back (stranger.c) it may also have come
 * just before one: then the descriptor ends it, or KVM_RUN's own flag. */
static void stop_soon(void)
{
    static const struct itimerspec at_once = {.it_value = {.tv_nsec = 1}};
    const uint64_t one = 1;
    atomic_store(&vm.stop_requested, true);
    kvm_machine_leave(&door.machine);
    if (write(vm.stop_fd, &one, sizeof one) < 0)
        (void)timerfd_settime(vm.stop_fd, 0, &at_once, NULL); /* it is a timer's (stranger.c) */
}

static void on_stop(int number)
{
    int saved = errno;
    caught = number;
    hurried = 1;
    devices_leave(); /* before the next one, which kills at whatever moment it comes */
    if (!deaf_to_interrupts)
        handle(SIGINT, SIG_DFL, 0); /* the next one kills */
    handle(SIGTERM, SIG_DFL, 0);
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

/* A terminal's ^Z, where the guest is another process: both stop, both go on. The sandbox's process is the
 * first of its pid namespace, and such a one hears only of a stop that it cannot refuse, from outside. */
static void on_suspend(int number)
{
    int saved = errno, pid = sandbox.pid;
    if (pid > 0)
        (void)kill(pid, SIGSTOP);
    handle(number, SIG_DFL, 0);
    (void)raise(number); /* returns when this process goes on */
    handle(number, on_suspend, SA_NODEFER);
    if (pid > 0)
        (void)kill(pid, SIGCONT);
    errno = saved;
}

static void on_kick(int number)
{
    (void)number;
    kvm_machine_leave(&door.machine);
}

/* What ends a run, whatever mask this process was started with: SIGINT, SIGTERM, the end of its time. */
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
    handle(SIGPIPE, SIG_IGN, 0); /* a console or a stderr without a reader costs the bytes */
    /* a file at its limit is an error to be told, a disk's the guest's to hear of */
    handle(SIGXFSZ, SIG_IGN, 0);
}

void signals_let_in(void)
{
    change_mask(SIG_UNBLOCK, true, true);
}

static void on_hurry(int number)
{
    hurried = 1;
    handle(number, SIG_DFL, 0); /* the next one kills */
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
    change_mask(SIG_UNBLOCK, false, true); /* of which Python will not know */
}

static void on_first(int number)
{
    caught = number;
    hurried = 1;
    if (!deaf_to_interrupts)
        handle(SIGINT, SIG_DFL, 0);
    handle(SIGTERM, SIG_DFL, 0);
}

/* Unless one has come: then the next one kills. */
static void hear(const struct request *request, void (*handler)(int))
{
    struct sigaction now;
    if (caught)
        return;
    if (sigaction(SIGINT, NULL, &now) == 0 && now.sa_handler == SIG_IGN && !request->solo5)
        deaf_to_interrupts = true; /* solo5-hvt hears it even then */
    handle(SIGTERM, handler, 0);
    if (!deaf_to_interrupts)
        handle(SIGINT, handler, 0);
}

int signal_caught(void)
{
    return caught;
}

static void expect_signals(const struct request *request, bool is_kvm)
{
    struct sigaction now;
    hear(request, on_stop);
    if (caught) {
        devices_leave();
        stop_soon();
    }
    if (is_kvm) {
        handle(VM_KICK_SIGNAL, on_kick, 0); /* the ring's worker has found what ends the run */
        vm.signals_at_will = true;
    }
    if (!is_kvm && sigaction(SIGTSTP, NULL, &now) == 0 && now.sa_handler == SIG_DFL)
        handle(SIGTSTP, on_suspend, SA_NODEFER);
    if (request->timeout_s > 0)
        handle(SIGALRM, on_time_over, 0);
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

/* Symbol, bytes and registers of where the guest stood are Python's to show (tender/cli/fault.py). */
static void hint_at_fault(const struct request *request, const struct vm_event *event, int status)
{
    static const char *const names[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                        "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    enum { REGISTERS = 16, WORDS = 5 + REGISTERS + 3 };
    static char text[WORDS][64];
    char *words[WORDS + 1] = {0};
    size_t at = 0;
    words[at++] = (char *)(uintptr_t)"--fault-hint";
    words[at++] = (char *)(uintptr_t)request->image;
    (void)snprintf(words[at] = text[at], sizeof *text, "%d", status);
    at++;
    (void)snprintf(words[at] = text[at], sizeof *text, "0x%" PRIx64, event->rip);
    at++;
    words[at] = text[at];
    for (uint32_t i = 0, end = 0; i < event->instruction_bytes && i < sizeof event->instruction; i++)
        end += (uint32_t)snprintf(text[at] + end, sizeof *text - end, "%s%02x", i ? " " : "",
                                  event->instruction[i]);
    at++;
    for (int i = 0; i < REGISTERS; i++, at++)
        (void)snprintf(words[at] = text[at], sizeof *text, "%s=0x%" PRIx64, names[i],
                       event->registers.gpr[i]);
    const struct {
        const char *name;
        uint64_t value;
    } others[] = {{"rflags", event->registers.rflags},
                  {"cr2", event->registers.cr2},
                  {"fs_base", event->registers.fs_base}};
    for (int i = 0; i < 3; i++, at++)
        (void)snprintf(words[at] = text[at], sizeof *text, "%s=0x%" PRIx64, others[i].name, others[i].value);
    if (!the_command.only_native)
        execute_python(words);
}

void devices_leave(void)
{
    for (uint32_t i = 0; i < vm.device_end; i++)
        if (vm.devices[i].type == MFT_NET_BASIC && (vm.devices[i].offload || vm.devices[i].segments))
            net_leave_header(vm.devices[i].fd);
}

static _Noreturn void end(const struct request *request, bool is_kvm)
{
    const struct vm_event event = *vm.event;
    if (!is_kvm) {
        sandbox_release(&sandbox);
        sandbox_ahead_end();
    }
    devices_leave();
    struct run_end ended;
    end_explain(&event, is_kvm, over_time, TOLD_COMMAND, &ended);
    if (event.kind == EVENT_SETUP_FAILED) {
        const char *step = setup_step_name(event.number);
        ended.status = STATUS_CANNOT_START;
        say("sandbox: %s: %s", step ? step : "set-up", strerror(event.os_error));
        if (!request->solo5)
            say_hint(setup_step_hint(event.number, event.os_error, TOLD_COMMAND));
    } else if (caught && event.kind != EVENT_HALT) {
        ended.status = STATUS_ENDED;
        say("Exiting on signal %d", (int)caught);
    } else if (event.kind == EVENT_STOPPED) {
        say("the guest was stopped: the %g s given are over", request->timeout_s);
    } else if (ended.message[0]) {
        say("%s", ended.message);
        if (event.registers_valid && !request->solo5 && !hurried)
            hint_at_fault(request, &event, ended.status);
    }
    if (is_kvm)
        leave_behind(&door.left, &door.machine);
    _exit(ended.status);
}

/* Before the guest's first instruction. Not by Python: on KVM it cannot be executed any more. */
static void refuse_missing_layers(const struct request *request, uint32_t layers)
{
    const uint32_t missing = request->require & ~layers;
    char names[256] = "";
    size_t at = 0;
    if (!missing)
        return;
    for (uint32_t i = 0; isolation_name(i); i++)
        if (missing & 1u << i)
            at += (size_t)snprintf(names + at, sizeof names - at, "%s%s", at ? ", " : "", isolation_name(i));
    say("required isolation layers are missing: %s", names);
    if (!request->solo5)
        say_hint(isolation_cure((uint32_t)__builtin_ctz(missing), door.is_kvm, TOLD_COMMAND));
    if (door.is_kvm) {
        devices_leave();
        leave_behind(&door.left, &door.machine);
    } else {
        sandbox_release(&sandbox);
        sandbox_ahead_end();
        devices_leave();
    }
    _exit(STATUS_CANNOT_START);
}

static void say_net_news(void)
{
    char text[NET_NEWS_BYTES];
    for (uint32_t next = 0; net_news(&vm, &next, door.is_kvm ? net_helper_attach : NULL, text);)
        say_notice("%s", text);
}

void run(const struct request *request)
{
    static struct image image;
    static struct devices devices;
    static char line[HVT_CMDLINE_BYTES];
    struct elf_error too_small;

    if (will_be_sandbox(request))
        sandbox_ahead_begin();
    tsc_sample(); /* early: tsc.h */
    hear(request, on_first);
    let_stops_in(SIG_UNBLOCK);
    open_image(&image, request->image);
    size_t line_bytes = join(request->args, line);
    if (elf_image_fits(&image.elf, request->mem_bytes, &too_small) < 0)
        refuse_image(&image, &too_small);
    int error = vm_init(&vm);
    if (error < 0)
        leave_to_python("no memory for a VM");
    if (console_set(&vm, STDOUT_FILENO) < 0)
        leave_to_python("console: 1: %s", strerror(errno));
    const bool sandbox_alone = will_be_sandbox(request);
    devices_attach(request, &image.elf, &vm,
                   sandbox_alone ? (uint32_t)RING_NONE : ring_wanted(request, &image.elf), &devices);
    let_stops_in(SIG_BLOCK);

    if (request->net_reattach && !sandbox_alone && (error = net_helper_begin(&vm)) < 0)
        leave_to_python("--net-reattach: a helper process cannot be had: %s", strerror(-error));
    if (request->backend == BACKEND_SANDBOX || !make_machine(request, &image, &devices, line, line_bytes))
        make_sandbox(request, &image, &devices, line, line_bytes);
    if (door.is_kvm)
        sandbox_ahead_end();
    close(image.fd);
    expect_signals(request, door.is_kvm);
    if (request->mem_adjusted && !request->quiet)
        say_notice("adjusting memory to %" PRIu64 " bytes", request->mem_bytes);
    if (door.is_kvm)
        refuse_missing_layers(request, close_the_door());
    else if (request->require)
        refuse_missing_layers(request, sandbox_isolation(&sandbox));
    /* solo5-hvt's managers keep stderr as the guest's console: a person reads it at a terminal. */
    if (door.fallback[0] && !request->quiet && (!request->solo5 || isatty(STDERR_FILENO)))
        say_notice(
            "no usable KVM (%s): the guest runs in the sandbox, a process behind a system-call filter, "
            "which isolates less than a virtual machine",
            door.fallback);
    do {
        if (door.is_kvm)
            kvm_run_loop(&vm, door.machine.vcpu_fd, door.machine.run);
        else
            sandbox_run(&sandbox);
        if (vm.event->kind == EVENT_NETWORK)
            say_net_news();
    } while (!event_ends_run(vm.event->kind));
    end(request, door.is_kvm);
}
