/*
 * The targets of --console and --json. As in tender/cli/outputs.py, a target that cannot be written is
 * refused before the guest runs, and so is a file that the guest is made of. The report is opened first:
 * it then also contains whatever is refused later.
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
#include "device_words.h"
#include "launcher.h"

static struct {
    const char *target; /* NULL: no report */
    bool is_file_of_ours;
    struct output to;
    bool begun;
    const char *shown; /* its name for a message, allocated before a filter forbids it; empty: no message */
} report = {.to = {.fd = -1}};

/* -1: the target is a file's name. */
static int descriptor_of(const char *target)
{
    if (strcmp(target, "-") == 0)
        return STDOUT_FILENO;
    return strncmp(target, FD_PREFIX, strlen(FD_PREFIX)) == 0 ? atoi(target + strlen(FD_PREFIX)) : -1;
}

/* Returns the target as messages show it. */
static const char *target_shown(const char *target)
{
    static char text[sizeof FD_PREFIX + 10];
    const int fd = descriptor_of(target);
    if (fd < 0)
        return shown(target);
    (void)snprintf(text, sizeof text, FD_PREFIX "%d", fd);
    return text;
}

/* Opens a descriptor to write to. A file is created if needed, and keeps its content. */
static int open_target(const char *option, const char *target, enum file_use use)
{
    struct device_error refused = {.text = ""};
    const int given = descriptor_of(target);
    const int fd = given < 0                                ? file_open(target, use, &refused)
                   : file_check_output(given, &refused) < 0 ? -1
                                                            : given;
    if (fd < 0)
        leave_to_python("%s=%s: %s", option, target_shown(target), refused.text);
    return fd;
}

/* Whether `fd` is a regular file, and the same as the file `name`, or if that is NULL as descriptor
 * `other`. */
static bool is_same(int fd, const char *name, int other)
{
    struct stat one, two;
    return fd >= 0 && fstat(fd, &one) == 0 && S_ISREG(one.st_mode) &&
           (name ? stat(name, &two) : fstat(other, &two)) == 0 && one.st_dev == two.st_dev &&
           one.st_ino == two.st_ino;
}

/* The same for the files that a device is made of, if its kind has files. */
static bool is_of_device(int fd, const struct setting *setting, bool solo5)
{
    struct device_settings said = DEVICE_SETTINGS_DEFAULTS;
    if (!device_has_places(&(struct vm_device){.type = setting->type}) ||
        !device_configure(setting->type, &said, setting->option, setting->value, solo5))
        return false;
    if (!said.source)
        return is_same(fd, NULL, said.fd);
    char *const cut = said.source_len ? strndup(said.source, said.source_len) : NULL;
    const bool same = is_same(fd, cut ? cut : said.source, -1);
    free(cut);
    return same;
}

/* Returns which part of the guest is in this file; NULL: none. It runs before anything is opened, so that not
 * even the report of a refusal overwrites it. */
static const char *part_of_guest(int fd, const struct request *request)
{
    if (is_same(fd, request->image, -1))
        return "the image";
    for (size_t i = 0; i < request->setting_count; i++)
        if (is_of_device(fd, &request->settings[i], request->solo5))
            return "a disk of the guest";
    return NULL;
}

/* The same for files that are also written, named by an option or inherited. If two inherited descriptors
 * are the same file, that is the caller's choice. */
static const char *other_output(int fd, const struct request *request, bool is_file_of_ours)
{
    const char *const console = request->console ? request->console : "-";
    const int console_fd = descriptor_of(console);
    if (strcmp(console, "none") != 0 &&
        (console_fd < 0 ? is_same(fd, console, -1) : is_file_of_ours && is_same(fd, NULL, console_fd)))
        return says_where_console;
    return is_file_of_ours && is_same(fd, NULL, STDERR_FILENO) ? "where stderr goes" : NULL;
}

void report_open(const struct request *request)
{
    const char *const target = request->json;
    if (!target)
        return;
    const int given = descriptor_of(target);
    if (given == STDERR_FILENO) {
        report.target = target;
        report.to = stderr_output();
        return;
    }
    const int fd = open_target("--json", target, FILE_REPORT);
    const char *what = part_of_guest(fd, request);
    if (!what)
        what = other_output(fd, request, given < 0);
    if (what) /* Python refuses it too, and prints the message */
        leave_to_python(says_written_over, "--json", target_shown(target), what);
    report.target = target;
    report.is_file_of_ours = given < 0;
    report.to = output_of(fd);
}

int console_open(const struct request *request)
{
    const char *const target = request->console;
    if (!target)
        return STDOUT_FILENO;
    if (strcmp(target, "none") == 0)
        return CONSOLE_DISCARD;
    const int fd = open_target("--console", target, FILE_CONSOLE);
    const char *const what = part_of_guest(fd, request);
    if (what)
        leave_to_python(says_written_over, "--console", target_shown(target), what);
    return fd;
}

void report_begin(void)
{
    if (report.to.fd < 0)
        return;
    if (report.is_file_of_ours && report.to.is_file)
        (void)ftruncate(report.to.fd, 0); /* its old content is not part of this run */
    report.shown = report_name();
    report.begun = true;
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
    return !report.target || descriptor_of(report.target) == STDERR_FILENO ? "" : target_shown(report.target);
}

void report_prepare(const struct report_about *about, const struct told_exit *told,
                    const struct vm_event *event, const struct vm_shared *shared)
{
    if (!report.begun)
        return;
    the_report_line.length = report_write(the_report_line.text, about, told, event, shared);
    the_report_line.open = 1;
}

void report_end(void)
{
    if (!report.begun)
        return;
    the_report_line.open = 0;
    const int error = write_output(&report.to, the_report_line.text, the_report_line.length, UINT64_MAX);
    if (error && *report.shown)
        say(says_report_lost, report.shown, error == -EAGAIN ? says_not_read : strerror(-error));
}

void report_refused(const struct report_about *about, const char *text)
{
    struct told_exit told = {.status = STATUS_CANNOT_START,
                             .error = "TenderError",
                             .code = about->signal ? "signal" : "error",
                             .hint = "",
                             .os_error = -1};
    int32_t ignored;
    told.reason = exit_reason_name(about->signal ? REASON_SIGNAL : REASON_NOT_STARTED, &ignored);
    (void)snprintf(told.message, sizeof told.message, "%s", text);
    report_begin();
    report_prepare(about, &told, NULL, NULL);
    report_end();
}
