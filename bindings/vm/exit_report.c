/* See exit_report.h. The longest lines are those of a forbidden system call and of a bad access, well below
 * the size of exit_report.message. */
#define _GNU_SOURCE
#include "exit_report.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/audit.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "hypercall.h"
#include "says.h"
#include "words.h"

#include "syscall_names.inc" /* written by gen_syscall_names.py from the kernel's headers */

/* KVM_INTERNAL_ERROR_EMULATION of <linux/kvm.h>: the guest executes something that is not memory, or an
 * instruction that KVM does not know. */
#define SUBERROR_EMULATION 1

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* A switch and not a table: each pointer in a table costs the command a relocation at each start. */
const char *exit_reason_name(uint32_t end, int32_t *status)
{
    switch (end) {
#define EXIT_REASON(name, reason, its_status)                                                                \
    case REASON_##name:                                                                                      \
        *status = its_status;                                                                                \
        return reason;
#include "exit_reasons.def"
    default:
        *status = 0;
        return NULL;
    }
}

const char *says_by_name(const char *asked)
{
#define SAYS(name, format)                                                                                   \
    if (strcmp(asked, #name) == 0)                                                                           \
        return format;
#include "says.def"
    return NULL;
}

static __attribute__((format(printf, 3, 4))) void fill(struct exit_report *report, enum exit_reason how,
                                                       const char *format, ...)
{
    va_list arguments;
    report->reason = exit_reason_name(how, &report->status);
    va_start(arguments, format);
    (void)vsnprintf(report->message, sizeof report->message, format, arguments);
    va_end(arguments);
}

const char *system_call_name(uint32_t number, uint64_t arch)
{
    bool old = arch == AUDIT_ARCH_I386;
    uint16_t at = 0;
    if (number < (old ? COUNT(names_i386) : COUNT(names_x86_64)))
        at = old ? names_i386[number] : names_x86_64[number];
    return !at ? "no such call" : (old ? text_i386 : text_x86_64) + at;
}

struct signal_words {
    char text[32];
};

/* Signals that a fault or a kill raises are named; others are shown by number. */
static struct signal_words signal_words(uint64_t number)
{
    static const struct {
        int number;
        const char *name;
    } known[] = {{SIGILL, "SIGILL"}, {SIGTRAP, "SIGTRAP"}, {SIGABRT, "SIGABRT"}, {SIGBUS, "SIGBUS"},
                 {SIGFPE, "SIGFPE"}, {SIGKILL, "SIGKILL"}, {SIGSEGV, "SIGSEGV"}};
    struct signal_words words;
    (void)snprintf(words.text, sizeof words.text, "signal %" PRIu64, number);
    for (size_t i = 0; i < COUNT(known); i++)
        if ((uint64_t)known[i].number == number)
            (void)snprintf(words.text, sizeof words.text, "%s", known[i].name);
    return words;
}

struct code_words event_code(const struct vm_event *event)
{
    struct code_words code = {""};
    size_t at = 0;
    for (uint32_t i = 0; i < event->instruction_bytes && i < sizeof event->instruction; i++)
        at += (size_t)snprintf(code.text + at, sizeof code.text - at, "%s%02x", i ? " " : "",
                               event->instruction[i]);
    return code;
}

static void explain_unsupported(const struct vm_event *event, enum told told, struct exit_report *report)
{
    static const char *const cures[] = {[TOLD_LIBRARY] = "backend=\"kvm\"", [TOLD_COMMAND] = "--backend kvm"};
    const struct code_words code = event_code(event);
    fill(report, REASON_UNSUPPORTED_INSTRUCTION,
         "sandbox: a privileged instruction that is not emulated: rip=0x%" PRIx64
         ", bytes %s; KVM may run it: %s",
         event->rip, code.text, cures[told]);
}

/* The message says whether another process ended this one, as far as that can be known: a guest that has
 * taken over its process can make it exit, fault, or make a forbidden call, but cannot have it sent
 * SIGKILL. */
static void explain_death(const struct vm_event *event, struct exit_report *report)
{
    const enum exit_reason how = REASON_SANDBOX_DIED;
    if (event->os_error == ETIMEDOUT)
        fill(report, how,
             "sandbox: the process was killed and has not ended: it waits in the kernel, for example for "
             "storage that does not respond");
    else if (event->os_error)
        fill(report, how,
             "sandbox: the process ended, and something else in this program took its exit status");
    else if (event->detail == SIGSYS)
        fill(report, how,
             "sandbox: the process was killed by its seccomp filter: the guest made the hypercall handlers "
             "ask for a forbidden system call");
    else if (event->detail == SIGKILL)
        fill(report, how,
             "sandbox: the process was killed from outside (SIGKILL): by another process, or because memory "
             "ran out");
    else if (event->detail)
        fill(report, how, "sandbox: the process died of %s in its hypercall handlers",
             signal_words(event->detail).text);
    else
        fill(report, how, "sandbox: the process exited with status %d instead of reporting an end",
             event->status);
    if (event->os_error || event->detail == SIGKILL)
        report->status = STATUS_HOST_FAILED;
}

static void explain_bad_access(const struct vm_event *event, struct exit_report *report)
{
    const char *call = hypercall_name(event->number);
    fill(report, REASON_BAD_ACCESS,
         "Invalid guest access: gpa=0x%" PRIx64 ", sz=%" PRIu64 " (hypercall %s, rip=0x%" PRIx64 ")",
         event->gpa, event->len, call ? call : "unknown", event->rip);
}

static void explain_handler_fault(const struct vm_event *event, struct exit_report *report)
{
    const char *rest = "the guest jumped into them or overwrote their memory";
    if (event->detail)
        fill(report, REASON_SANDBOX_FAULT, "sandbox: %s at rip=0x%" PRIx64 " in the hypercall handlers: %s",
             signal_words(event->detail).text, event->rip, rest);
    else
        fill(report, REASON_SANDBOX_FAULT, "sandbox: a false report from the hypercall handlers: %s", rest);
}

static const char *const setup_steps[] = {
    [1] = "mapping guest memory",
    [2] = "signals",
    [3] = "limits",
    [4] = "dropping rights",
    [5] = "the seccomp filter",
    [6] = "an inherited seccomp filter ended the process before the guest's first instruction",
};

#define MORE_MEMORY(less)                                                                                    \
    "the host grants no more memory: give the guest less (" less "), raise `ulimit -v` and `ulimit -d`, or " \
    "set sysctl vm.overcommit_memory to 0"

#define PACKAGE_HINT "it belongs to the package: install tender again, on a file system that is not noexec"

enum { ANY_STEP = -1, ANY_ERROR = -1 };

/* What usually causes this error at this step. The first row that matches is used. An error that can have
 * many causes has no row. */
static const struct {
    int step, os_error;
    const char *hints[2]; /* by enum told */
} setup_hints[] = {
    {ANY_STEP, ENOMEM, EACH(MORE_MEMORY("mem=16"), MORE_MEMORY("--mem=16"))},
    {ANY_STEP, EMFILE, BOTH("the limit of open files is reached: ulimit -n 1024")},
    {ANY_STEP, ENFILE, BOTH("the host's limit of open files is reached: sysctl fs.file-max")},
    {SETUP_START, EINVAL, BOTH("the limit of open files may be below 512: ulimit -n 1024")},
    {SETUP_START, EAGAIN,
     BOTH("the limit of processes is reached: ulimit -u, or pids.max of the control group")},
    {SETUP_START, ENOSYS, BOTH("the sandbox needs Linux 5.9 or later")},
    {SETUP_START, ENOENT, BOTH(PACKAGE_HINT)},
    {SETUP_START, ENOEXEC, BOTH(PACKAGE_HINT)},
    {SETUP_START, EACCES, BOTH(PACKAGE_HINT)},
    {1, EPERM,
     BOTH("guest memory begins at 64 KiB: sysctl vm.mmap_min_addr must not be above 65536; or a filter "
          "forbids executable memory, as systemd's MemoryDenyWriteExecute= does")},
    {1, EACCES,
     BOTH("executable memory is forbidden: systemd's MemoryDenyWriteExecute= must be off, and a security "
          "module must allow it")},
    {1, EEXIST, BOTH("the sandbox needs Linux 5.9 or later")},
    {1, EAGAIN, BOTH("all memory of the process is locked: raise `ulimit -l`")},
    {5, ANY_ERROR,
     BOTH("the kernel must have CONFIG_SECCOMP_FILTER, and nothing may forbid this process to use it")},
    {6, ANY_ERROR,
     BOTH("the filter comes from what started tender: systemd's SystemCallFilter= must list @sandbox, @mount "
          "and @setuid in addition to @system-service, and a container needs a profile that allows these "
          "calls")},
};

const char *setup_step_name(uint32_t step)
{
    return step < COUNT(setup_steps) ? setup_steps[step] : NULL;
}

const char *setup_step_hint(uint32_t step, int os_error, enum told told)
{
    for (size_t i = 0; i < COUNT(setup_hints); i++)
        if ((setup_hints[i].step == ANY_STEP || (uint32_t)setup_hints[i].step == step) &&
            (setup_hints[i].os_error == ANY_ERROR || setup_hints[i].os_error == os_error))
            return setup_hints[i].hints[told];
    return "";
}

static const char *const layers[ISOLATION_LAYERS] = {
    "user-namespace",
    "network-namespace",
    "mount-namespace",
    "pid-namespace",
    "ipc-namespace",
    "empty-root",
    "landlock",
    "seccomp-filter",
    "uid",
    "capabilities",
    "kvm",
};

const char *isolation_name(uint32_t index)
{
    return index < COUNT(layers) ? layers[index] : NULL;
}

const char *isolation_cure(uint32_t index, const struct machine_words *words, enum told told)
{
    const char *cure = NULL;
    if (index < COUNT(layers) && words->cures)
        cure = words->cures[index][told];
    return cure ? cure : "";
}

void exit_report_fill(const struct vm_event *event, const struct machine_words *words, bool over_time,
                      enum told told, struct exit_report *report)
{
    const char *const title = words->title;
    switch (event->kind) {
    case EVENT_HALT:
        fill(report, event->status == HVT_EXIT_ABORT ? REASON_ABORT : REASON_EXIT, "%s", "");
        report->status = event->status & 0xff;
        break;
    case EVENT_STOPPED:
        fill(report, over_time ? REASON_TIMEOUT : REASON_STOPPED, "%s",
             over_time ? "the time limit is over" : "stopped");
        break;
    case EVENT_TRANSLATION_FAULT:
        fill(report, REASON_TRANSLATION_FAULT, "%s: host/guest translation fault: rip=0x%" PRIx64, title,
             event->rip);
        break;
    case EVENT_BAD_PORT:
        fill(report, REASON_BAD_PORT, "Invalid guest port access: port=0x%x", event->port);
        break;
    case EVENT_BAD_HYPERCALL:
        fill(report, REASON_BAD_HYPERCALL, "Invalid guest hypercall: num=%u", event->number);
        break;
    case EVENT_BAD_ACCESS:
        explain_bad_access(event, report);
        break;
    case EVENT_UNHANDLED_EXIT:
        fill(report, REASON_UNHANDLED_EXIT, "%s: unhandled exit: exit_reason=0x%" PRIx64 ", rip=0x%" PRIx64,
             title, event->detail, event->rip);
        break;
    case EVENT_ENTRY_FAILURE:
        fill(report, REASON_ENTRY_FAILURE, "KVM: entry failure: hw_entry_failure_reason=0x%" PRIx64,
             event->detail);
        break;
    case EVENT_INTERNAL_ERROR:
        fill(report, REASON_INTERNAL_ERROR, "KVM: internal error exit: suberror=0x%" PRIx64, event->detail);
        if (event->detail == SUBERROR_EMULATION)
            report->status = STATUS_ENDED;
        break;
    case EVENT_HOST_ERROR:
        fill(report, REASON_HOST_ERROR, "%s: %s failed: %s%s", title, words->run_call,
             strerror(event->os_error), words->run_hint && event->os_error == EAGAIN ? words->run_hint : "");
        break;
    case EVENT_UNSUPPORTED_INSTRUCTION:
        explain_unsupported(event, told, report);
        break;
    case EVENT_FORBIDDEN_SYSCALL:
        fill(report, REASON_FORBIDDEN_SYSCALL,
             "sandbox: the guest asked the host's kernel for system call %d (%s%s): rip=0x%" PRIx64,
             (int32_t)event->number, system_call_name(event->number, event->detail),
             event->detail == AUDIT_ARCH_I386 ? ", by the 32-bit entry" : "", event->rip);
        break;
    case EVENT_HANDLER_FAULT:
        explain_handler_fault(event, report);
        break;
    default:
        explain_death(event, report);
    }
}

#define REGISTERS_PER_LINE 6
#define FAULT_LINE_BYTES   256

const char *event_register(const struct vm_event *event, uint32_t index, uint64_t *value)
{
    static const char names[EVENT_REGISTERS][8] = {"rax", "rcx", "rdx",    "rbx", "rsp",    "rbp", "rsi",
                                                   "rdi", "r8",  "r9",     "r10", "r11",    "r12", "r13",
                                                   "r14", "r15", "rflags", "cr2", "fs_base"};
    const struct vm_registers *registers = &event->registers;
    const uint64_t others[] = {registers->rflags, registers->cr2, registers->fs_base};
    _Static_assert(COUNT(registers->gpr) + COUNT(others) == EVENT_REGISTERS, "all have names");
    *value = index < COUNT(registers->gpr) ? registers->gpr[index] : others[index - COUNT(registers->gpr)];
    return names[index];
}

/* Writes line `number`, from 0 on, of the fault's description: the place, then the registers. False: there is
 * no such line. */
static bool fault_line(const struct vm_event *event, uint32_t number, char text[FAULT_LINE_BYTES])
{
    size_t at = 0;
    text[0] = '\0';
    if (!event->registers_valid || (number && (number - 1) * REGISTERS_PER_LINE >= EVENT_REGISTERS))
        return false;
    if (!number) {
        struct code_words code = event_code(event);
        (void)snprintf(text, FAULT_LINE_BYTES, says_fault_place, event->rip,
                       code.text[0] ? code.text : "none", event->rip);
        return true;
    }
    for (uint32_t i = (number - 1) * REGISTERS_PER_LINE;
         i < EVENT_REGISTERS && i < number * REGISTERS_PER_LINE; i++) {
        uint64_t value;
        const char *name = event_register(event, i, &value);
        at += (size_t)snprintf(text + at, FAULT_LINE_BYTES - at, "%s%s 0x%" PRIx64, at ? "  " : "", name,
                               value);
    }
    return true;
}

static __attribute__((format(printf, 3, 4))) void tells(struct told_exit *told, enum exit_reason how,
                                                        const char *format, ...)
{
    va_list arguments;
    int32_t status;
    const char *reason = exit_reason_name(how, &status);
    *told = (struct told_exit){.reason = reason, .status = status};
    va_start(arguments, format);
    (void)vsnprintf(told->message, sizeof told->message, format, arguments);
    va_end(arguments);
}

static void tell_not_started(const struct exit_reader *reader, struct told_exit *told, const char *code,
                             const char *hint, int os_error)
{
    told->error = "HostError";
    told->code = code;
    told->hint = hint;
    told->os_error = os_error;
    reader->line(told->message);
    reader->hint(hint);
}

void exit_report_tell(const struct vm_event *event, const struct machine_words *words, int stopped_by,
                      const char *time_over, const struct exit_reader *reader, struct told_exit *told)
{
    char text[FAULT_LINE_BYTES];
    struct exit_report report;
    if (event->kind == EVENT_SETUP_FAILED) {
        const char *step = event->number == SETUP_START ? reader->program : setup_step_name(event->number);
        tells(told, REASON_NOT_STARTED, says_sandbox_failed, step ? step : "set-up",
              strerror(event->os_error));
        tell_not_started(reader, told, "sandbox",
                         setup_step_hint(event->number, event->os_error, TOLD_COMMAND), event->os_error);
        return;
    }
    if (stopped_by && stopped_by != SIGALRM && event->kind != EVENT_HALT) {
        tells(told, REASON_SIGNAL, says_signal, stopped_by);
        reader->line(told->message);
        return;
    }
    exit_report_fill(event, words, stopped_by == SIGALRM, TOLD_COMMAND, &report);
    *told = (struct told_exit){.reason = report.reason, .status = report.status};
    memcpy(told->message, report.message, sizeof report.message);
    if (event->kind == EVENT_STOPPED)
        reader->line(time_over);
    else if (told->message[0])
        reader->line(told->message);
    for (uint32_t i = 0; fault_line(event, i, text); i++)
        reader->hint(text);
}

bool exit_is_abnormal(const struct vm_event *event, int stopped_by)
{
    switch (event->kind) {
    case EVENT_NONE:
    case EVENT_SETUP_FAILED:
    case EVENT_PROCESS_DIED:
        return false;
    case EVENT_HALT:
        return event->status == HVT_EXIT_ABORT;
    case EVENT_STOPPED:
        return stopped_by == SIGALRM || stopped_by == SIGQUIT;
    default:
        return stopped_by != SIGINT && stopped_by != SIGTERM;
    }
}

void exit_report_tell_missing(uint32_t missing, const struct machine_words *words,
                              const struct exit_reader *reader, struct told_exit *told)
{
    char names[256] = "";
    size_t at = 0;
    for (uint32_t i = 0; isolation_name(i); i++)
        if (missing & 1u << i)
            at += (size_t)snprintf(names + at, sizeof names - at, "%s%s", at ? ", " : "", isolation_name(i));
    tells(told, REASON_NOT_STARTED, says_layers_missing, names);
    tell_not_started(reader, told, "isolation-missing",
                     isolation_cure((uint32_t)__builtin_ctz(missing), words, TOLD_COMMAND), 0);
}
