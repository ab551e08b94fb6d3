/* machine_ops of the sandbox: the guest is a process of its own, tender-sandbox. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "become.h"
#include "debug_note.h"
#include "entered.h"
#include "machine.h"
#include "patch.h"
#include "says.h"
#include "spawn.h"
#include "start_state.h"
#include "tsc.h"

_Static_assert(sizeof(struct sandbox) <= MACHINE_OWN_BYTES, "it fits");

static struct sandbox *own(const struct machine *machine)
{
    return (struct sandbox *)(void *)(uintptr_t)machine->own;
}

static struct sandbox_config *config_of(const struct sandbox *sandbox)
{
    return (void *)(sandbox->mapping + SANDBOX_CONFIG_OFFSET);
}

/* ---- making it */

static int failed(struct machine_error *error, uint32_t step, const char *what, int refused)
{
    *error = (struct machine_error){.os_error = -refused, .step = step, .code = "sandbox"};
    (void)snprintf(error->text, sizeof error->text, says_sandbox_failed, what, strerror(-refused));
    return -1;
}

/* Reports to entered() what this process writes to the guest's memory. The handlers of the other process
 * report their writes themselves. */
static void report_entered(const struct machine *machine, gpa_t gpa, uint64_t len, enum entered_source source)
{
    const struct guest_memory *memory = &machine->vm->memory;
    entered(memory, (const void *)((uintptr_t)memory->hva + gpa), len, source);
}

static void write_boot_info(struct machine *machine, const struct machine_plan *plan)
{
    start_state_write_boot_info(sandbox_boot_info(own(machine)), plan->image, plan->manifest, plan->mem_bytes,
                                tsc_hz(), 0, plan->cmdline, plan->cmdline_bytes);
    report_entered(machine, HVT_BOOT_INFO_GPA, START_STATE_BOOT_BYTES, ENTERED_BOOT_INFO);
}

/* Makes the image's start state with patched call sites, in a memfd for the sandbox process. Returns a
 * descriptor or -errno. */
static int make_template(const struct machine_plan *plan)
{
    const uint64_t bytes = start_state_template_bytes(plan->image);
    int fd = memfd_create("tender-image", MFD_CLOEXEC);
    void *memory = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0)
        memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        return -errno;
    start_state_write_extension(memory, plan->image->extensions);
    plan->load(memory, false);
    (void)patch_template(plan->image, memory, fd);
    return fd;
}

/* Who may trace the process where Yama allows that to its parents alone. */
static uint64_t tracer_of(bool debuggable, int32_t observer)
{
    return debuggable ? PR_SET_PTRACER_ANY : (uint64_t)observer;
}

static int open_for_command(struct machine *machine, const struct machine_plan *plan,
                            struct machine_error *error)
{
    struct sandbox *sandbox = own(machine);
    const int template_fd = make_template(plan);
    if (template_fd < 0)
        return failed(error, SETUP_SHARED, "the image's template", template_fd);
    int refused = sandbox_init(sandbox, machine->vm, plan->path);
    if (refused < 0)
        return failed(error, SETUP_SHARED, says_sandbox_memory, refused);
    write_boot_info(machine, plan);
    char *program = plan->find("tender-sandbox"); /* last: what hides it may have made the others fail too */
    const bool becomes = plan->alone && sandbox_can_become(plan->alone->required);
    /* The observer of the end is no parent of another process. In a PID namespace it has no number, and needs
     * none: such a namespace is root's, or that of a user namespace, whose owner may trace
     * (user_namespaces(7)). */
    config_of(sandbox)->tracer = tracer_of(plan->debuggable, becomes ? 0 : plan->observer);
    if (!becomes) /* SIGCHLD may be inherited as ignored; then the kernel keeps no exit status of a child */
        (void)signal(SIGCHLD, SIG_DFL);
    refused = becomes ? sandbox_become_prepare(sandbox, plan, template_fd, program)
                      : sandbox_spawn_here(sandbox, plan->image, template_fd, plan->mem_bytes, program,
                                           plan->name, plan->observer != 0);
    if (!becomes || refused < 0)
        close(template_fd); /* no other process has it, so what the guest maps does not change */
    if (refused < 0) {
        sandbox_release(sandbox);
        return failed(error, SETUP_START, program, refused);
    }
    if (becomes)
        machine->program = program;
    else
        free(program);
    machine->reports_own_end = becomes;
    machine->possible_layers = (1u << ISOLATION_LAYERS) - 1 - ISOLATION_KVM;
    return 0;
}

static int open_one_of_many(struct machine *machine, const struct machine_plan *plan,
                            struct machine_error *error)
{
    struct sandbox *sandbox = own(machine);
    char what[sizeof error->text - 64];
    int refused = sandbox_init(sandbox, machine->vm, plan->path);
    if (refused < 0)
        return failed(error, SETUP_SHARED, says_sandbox_memory, refused);
    write_boot_info(machine, plan);
    config_of(sandbox)->tracer = tracer_of(plan->debuggable, 0);
    refused =
        sandbox_spawn(sandbox, plan->image, plan->template_fd, plan->mem_bytes, plan->program, plan->name);
    if (refused == 0)
        return 0;
    sandbox_release(sandbox);
    (void)snprintf(what, sizeof what, "%s cannot be started", plan->program);
    return failed(error, SETUP_START, what, refused);
}

static int open_machine(struct machine *machine, const struct machine_plan *plan, struct machine_error *error)
{
    return plan->load ? open_for_command(machine, plan, error) : open_one_of_many(machine, plan, error);
}

/* ---- while it runs */

static uint32_t isolation(struct machine *machine)
{
    return sandbox_isolation(own(machine));
}

static void run(struct machine *machine)
{
    if (own(machine)->becomes)
        sandbox_become(own(machine));
    else
        sandbox_run(own(machine));
}

/* The process is the first of its pid namespace. The only stop that has an effect on such a process is one
 * that it cannot refuse, sent from outside: SIGSTOP. */
static void pause_process(struct machine *machine, bool paused)
{
    const int pid = own(machine)->pid;
    if (pid > 0)
        (void)kill(pid, paused ? SIGSTOP : SIGCONT);
}

static int process_of(const struct machine *machine)
{
    return own(machine)->pidfd >= 0 ? own(machine)->pid : -1;
}

/*
 * The general registers are known if a fault ended the run: the event has them, with CR2 and the FS base. For
 * other ends, and for a guest that waits in a hypercall, this process gets no registers. It never gets
 * vector registers or the shadows of system registers.
 */
static int get_cpu_state(struct machine *machine, uint32_t parts, struct cpu_state *state)
{
    const struct vm_event *event = &own(machine)->event;
    state->known = 0;
    if (!event->registers_valid || !(parts & CPU_GENERAL))
        return -ENODATA;
    memcpy(state->general.gpr, event->registers.gpr, sizeof state->general.gpr);
    state->general.rip = event->registers.rip;
    state->general.rflags = event->registers.rflags;
    state->known = CPU_GENERAL;
    return 0;
}

static int64_t read_memory(struct machine *machine, gpa_t gpa, void *to, uint64_t len)
{
    return sandbox_read(own(machine), gpa, to, len);
}

static int64_t write_memory(struct machine *machine, gpa_t gpa, const void *from, uint64_t len)
{
    const int64_t put = sandbox_write(own(machine), gpa, from, len);
    if (put > 0)
        report_entered(machine, gpa, (uint64_t)put, ENTERED_HOST);
    return put;
}

static const void *console(struct machine *machine, const struct vm_event *event)
{
    (void)event;
    return own(machine)->mapping + SANDBOX_CONSOLE_OFFSET;
}

static void close_machine(struct machine *machine)
{
    sandbox_release(own(machine));
}

/* ---- for a debugger */

DEBUG_NOTE(debug_facts_of_sandbox)
{
#define OF_SANDBOX(name, member)                                                                             \
    DEBUG_NUMBER(name, offsetof(struct machine, own) + offsetof(struct sandbox, member))
    OF_SANDBOX("sandbox_pid", pid);
    OF_SANDBOX("sandbox_parent", parent);
    OF_SANDBOX("sandbox_mapping", mapping);
    DEBUG_NUMBER("sandbox_trace", SANDBOX_TRACE_OFFSET);
}

const struct machine_ops sandbox_ops = {
    .name = "sandbox",
    .words = &sandbox_words,
    .open = open_machine,
    .isolation = isolation,
    .run = run,
    .pause = pause_process,
    .pid = process_of,
    .get_cpu_state = get_cpu_state,
    .read = read_memory,
    .write = write_memory,
    .console = console,
    .write_boot_info = write_boot_info,
    .close = close_machine,
};
