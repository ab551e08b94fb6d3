/* See become.h. For a process that has one thread, and whose only remaining task is to run this guest. */
#define _GNU_SOURCE
#include "become.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "death_signal.h"
#include "runner.h"
#include "says.h"
#include "unprivileged.h"

static struct spawn becoming; /* for the one guest of this process */

static struct sandbox_alone *config_of(const struct sandbox *sandbox)
{
    struct sandbox_config *config = (void *)(sandbox->mapping + SANDBOX_CONFIG_OFFSET);
    return &config->alone;
}

int sandbox_become_prepare(struct sandbox *sandbox, const struct machine_plan *plan, int template_fd,
                           const char *program)
{
    const struct machine_alone *alone = plan->alone;
    struct sandbox_alone *to = config_of(sandbox);
    const struct output errors = alone->errors();
    if (access(program, X_OK) < 0)
        return -errno;
    const int error = sandbox_prepare(sandbox, plan->image, plan->mem_bytes, program, plan->name,
                                      errors.is_file || alone->report.is_file, &becoming);
    if (error)
        return error;
    sandbox_name_fds(&becoming, sandbox, template_fd);
    if (errors.fd >= 0)
        spawn_add_fd(&becoming, errors.fd, SANDBOX_FD_STDERR);
    to->errors = errors;
    to->errors.fd = SANDBOX_FD_STDERR;
    to->report = alone->report;
    if (alone->report.fd >= 0) {
        spawn_add_fd(&becoming, alone->report.fd, SANDBOX_FD_REPORT);
        to->report.fd = SANDBOX_FD_REPORT;
        to->start_ns = alone->start_ns;
        (void)snprintf(to->report_name, sizeof to->report_name, "%s", alone->report_name);
        (void)snprintf(to->image, sizeof to->image, "%s", alone->image);
    }
    if (alone->observer_fd >= 0) {
        spawn_add_fd(&becoming, alone->observer_fd, SANDBOX_FD_CONTROL);
        to->observed = true;
    }
    becoming.argv = alone->words();
    becoming.closes_on_exec = true;
    becoming.layers = &to->layers;
    to->wanted = true;
    to->hints = alone->hints;
    to->required = alone->required;
    to->ignores_interrupts = alone->ignores_interrupts;
    (void)snprintf(to->program, sizeof to->program, "%s", alone->program);
    if (alone->timeout_s > 0)
        (void)snprintf(to->time_over, sizeof to->time_over, says_time_over, alone->timeout_s);
    sandbox->becomes = true;
    return 0;
}

static const int faults[] = {SANDBOX_FAULTS};
static const int stops[] = {SIGTERM, SIGINT, SIGALRM, SIGQUIT, VM_KICK_SIGNAL};
#define COUNT(array) (sizeof(array) / sizeof *(array))

/* Signals that arrive from here on wait for the program's handlers. `before`: the mask until now. */
static void hold_signals(struct sandbox_alone *to, sigset_t *before)
{
    sigset_t all, now;
    sigfillset(&all);
    for (size_t i = 0; i < COUNT(faults); i++)
        sigdelset(&all, faults[i]);
    (void)sigprocmask(SIG_SETMASK, &all, before);
    now = *before;
    for (size_t i = 0; i < COUNT(faults); i++)
        sigdelset(&now, faults[i]);
    for (size_t i = 0; i < COUNT(stops); i++)
        sigdelset(&now, stops[i]);
    memcpy(&to->mask, &now, sizeof to->mask); /* the kernel's set is the first part of any C library's */
    becoming.mask = all;
}

static int enter(uint32_t set, void *unused)
{
    (void)unused;
    return unshare((int)set) == 0 ? 0 : errno;
}

void sandbox_become(struct sandbox *sandbox)
{
    struct sandbox_alone *to = config_of(sandbox);
    const struct death_signal death = death_signal_now();
    sigset_t before;
    hold_signals(to, &before);
    if (atomic_load(&sandbox->vm->stop_requested)) {
        sandbox->event = (struct vm_event){.kind = EVENT_STOPPED};
    } else {
        becoming.death_signal = death.number;
        spawn_change_user(&becoming, NULL);
        const uint32_t network = to->required & ISOLATION_NETWORK_NAMESPACE ? CLONE_NEWNET : 0;
        becoming.isolation =
            isolation_of(namespaces_try(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWIPC | network, enter, NULL));
        death_signal_keep(&death);
        to->created_ns = monotonic_ns();
        const long error = child_execute(&becoming);
        sandbox->event =
            (struct vm_event){.kind = EVENT_SETUP_FAILED, .number = SETUP_START, .os_error = (int32_t)-error};
    }
    (void)sigprocmask(SIG_SETMASK, &before, NULL); /* a signal ends the wait for a slow reader of stderr */
}
