/*
 * Where --console and --json go. As tender/cli/outputs.py: what cannot be written is refused before the guest
 * runs, and so is what the guest is made of. The report comes first: what is refused later is told in it too.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "console.h"
#include "device.h"
#include "device_ops.h"
#include "launcher.h"

static struct {
    const char *target; /* NULL: no report */
    bool is_file_of_ours;
    struct output to;
    /* Made before a filter lets nothing be allocated: */
    const char *shown; /* its name for a message; empty: none is said */
    char *line;        /* REPORT_BYTES */
} report = {.to = {.fd = -1}};

/* -1: a file's name. */
static int descriptor_of(const char *target)
{
    if (strcmp(target, "-") == 0)
        return STDOUT_FILENO;
    return strncmp(target, FD_PREFIX, strlen(FD_PREFIX)) == 0 ? atoi(target + strlen(FD_PREFIX)) : -1;
}

/* A descriptor to write to; a file is made, and keeps what it holds. */
static int open_target(const char *option, const char *target, enum file_use use)
{
    struct device_error refused = {.text = ""};
    const int given = descriptor_of(target);
    const int fd = given < 0                                ? file_open(target, use, &refused)
                   : file_check_output(given, &refused) < 0 ? -1
                                                            : given;
    if (fd < 0)
        leave_to_python("%s=%s: %s", option, shown(target), refused.text);
    return fd;
}

void report_open(const char *target)
{
    if (!target)
        return;
    report.target = target;
    const int given = descriptor_of(target);
    if (given == STDERR_FILENO) {
        report.to = stderr_output();
        return;
    }
    report.is_file_of_ours = given < 0;
    report.to = output_of(open_target("--json", target, FILE_REPORT));
}

int console_open(const char *target)
{
    if (!target)
        return STDOUT_FILENO;
    if (strcmp(target, "none") == 0)
        return CONSOLE_DISCARD;
    return open_target("--console", target, FILE_CONSOLE);
}

static bool same_file(int fd, int other)
{
    struct stat one, two;
    return fd >= 0 && other >= 0 && fstat(fd, &one) == 0 && fstat(other, &two) == 0 && S_ISREG(one.st_mode) &&
           one.st_dev == two.st_dev && one.st_ino == two.st_ino;
}

static bool is_of_guest(int fd, int image_fd, const struct vm *vm)
{
    bool found = same_file(fd, image_fd);
    for (uint32_t i = 0; i < vm->device_end; i++)
        found = found || (vm->devices[i].type && device_has_places(&vm->devices[i]) &&
                          same_file(fd, vm->devices[i].fd));
    return found;
}

void outputs_check_apart(const struct request *request, int image_fd, const struct vm *vm)
{
    const bool to_stderr = report.target && descriptor_of(report.target) == STDERR_FILENO;
    const bool console_is_file = request->console && descriptor_of(request->console) < 0;
    if (report.target && !to_stderr &&
        (is_of_guest(report.to.fd, image_fd, vm) ||
         (report.is_file_of_ours && console_is_file && same_file(report.to.fd, vm->console.fd))))
        leave_to_python("--json=%s: this is written over", shown(report.target));
    if (request->console && is_of_guest(vm->console.fd, image_fd, vm))
        leave_to_python("--console=%s: this is written over", shown(request->console));
}

void report_begin(void)
{
    if (report.to.fd < 0)
        return;
    if (report.is_file_of_ours && report.to.is_file)
        (void)ftruncate(report.to.fd, 0); /* what it held is no part of this run */
    report.shown = shown(report_name());
    report.line = malloc(REPORT_BYTES);
}

void report_keep(void)
{
    if (report.is_file_of_ours && report.to.is_pipe)
        (void)fcntl(report.to.fd, F_SETFD, 0);
}

struct output report_output(void)
{
    return report.to;
}

const char *report_name(void)
{
    return !report.target || descriptor_of(report.target) == STDERR_FILENO ? "" : report.target;
}

void report_end(const struct report_about *about, const struct told_end *told, const struct vm_event *event,
                const struct vm_shared *shared)
{
    if (!report.line)
        return;
    const size_t length = report_write(report.line, about, told, event, shared);
    const int error = write_output(&report.to, report.line, length, UINT64_MAX);
    if (error && *report.shown)
        say(says_report_lost, report.shown, strerror(-error));
}

void report_refused(const struct report_about *about, const char *text)
{
    struct told_end told = {.status = STATUS_CANNOT_START,
                            .error = "TenderError",
                            .code = about->signal ? "signal" : "error",
                            .hint = "",
                            .os_error = -1};
    int32_t ignored;
    told.reason = end_reason(about->signal ? END_SIGNAL : END_NOT_STARTED, &ignored);
    (void)snprintf(told.message, sizeof told.message, "%s", text);
    report_begin();
    report_end(about, &told, NULL, NULL);
}
