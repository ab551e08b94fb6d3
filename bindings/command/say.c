/* Lines of the command on stderr. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "console.h"
#include "device.h"
#include "launcher.h"

#define PATIENCE_NS UINT64_C(1000000000)
#define CUT         "...\n" /* the end of a line that is longer than 8 KiB */

volatile sig_atomic_t hurried;

struct output output_of(int fd)
{
    struct stat about;
    struct output output = {.fd = -1};
    if (fd < 0 || fstat(fd, &about) < 0)
        return output;
    output.is_pipe = S_ISFIFO(about.st_mode);
    output.is_socket = S_ISSOCK(about.st_mode);
    output.is_file = S_ISREG(about.st_mode);
    const int terminal = S_ISCHR(about.st_mode) ? terminal_without_waiting(fd) : -1;
    output.fd = terminal < 0 ? fd : terminal;
    return output;
}

struct output stderr_output(void)
{
    static struct output output;
    static bool prepared;
    if (!prepared)
        output = output_of(STDERR_FILENO);
    prepared = true;
    return output;
}

/* A reader has until `until_ns`. Once `hurried` is set, all waits together last at most PATIENCE_NS. */
static bool is_over(uint64_t until_ns)
{
    static uint64_t hurry_until_ns;
    const uint64_t now_ns = monotonic_ns();
    if (hurried && !hurry_until_ns)
        hurry_until_ns = now_ns + PATIENCE_NS;
    return now_ns >= until_ns || (hurry_until_ns && now_ns >= hurry_until_ns);
}

int write_output(const struct output *output, const char *text, size_t length, uint64_t until_ns)
{
    struct output_progress progress = {0, 0};
    return output->fd < 0 ? 0 : output_write(output, text, length, &progress, is_over, until_ns);
}

const char *shown(const char *name)
{
    const size_t capacity = 4 * strlen(name) + sizeof "...";
    char *text = malloc(capacity);
    return text ? text_escape(text, capacity, name, true) : "?";
}

/* Text that cannot be written in time, or that has no reader, must not change how the command ends. */
static void say_lines(const char *before, const char *text, uint64_t until_ns)
{
    const struct output errors = stderr_output();
    while (text) {
        char line[sizeof CUT + 8192], part[8192], safe[8192];
        const char *end = strchrnul(text, '\n');
        (void)snprintf(part, sizeof part, "%.*s", (int)(end - text), text);
        int len = snprintf(line, sizeof line, "%s: %s%s\n", the_command.program, before,
                           text_escape(safe, sizeof safe, part, false));
        if (len >= (int)sizeof line) {
            len = sizeof line - 1;
            memcpy(line + sizeof line - sizeof CUT, CUT, sizeof CUT);
        }
        (void)write_output(&errors, line, (size_t)len, until_ns);
        text = *end ? end + 1 : NULL;
    }
}

static void say_formatted(uint64_t until_ns, const char *format, va_list arguments)
{
    char text[8192];
    (void)vsnprintf(text, sizeof text, format, arguments);
    say_lines("", text, until_ns);
}

void say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say_formatted(UINT64_MAX, format, arguments);
    va_end(arguments);
}

void say_notice(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say_formatted(monotonic_ns() + PATIENCE_NS, format, arguments);
    va_end(arguments);
}

void say_hint(const char *text)
{
    if (*text)
        say_lines("hint: ", text, UINT64_MAX);
}
