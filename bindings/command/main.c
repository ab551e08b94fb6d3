/*
 * The command `tender`. It serves a plain run, in its own grammar or solo5-hvt's, without an interpreter,
 * which would cost several times the boot of a small unikernel. Everything else is left to Python.
 *
 * TENDER_LAUNCHER in the environment chooses: `python` leaves everything to Python, `native` nothing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launcher.h"

/* Written from tender/cli/main.py: the subcommands that Python serves, and the names of solo5-hvt. */
static const char *const pythons[] = {PYTHON_COMMANDS};
static const char *const fronts[] = {FRONTS};
#define LINKED_TOOL "solo5-elftool" /* started through a link of that name, as the fronts are */

static bool among(const char *word, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(word, names[i]) == 0)
            return true;
    return false;
}

static bool is_front(const char *word)
{
    return among(word, fronts, sizeof fronts / sizeof *fronts);
}

/* Opens 0, 1 and 2 if they are closed: otherwise a disk may get such a number, and the console write to
 * it. They get the end of a pipe without a reader, because /dev/null may be missing. */
static void hold_standard_descriptors(void)
{
    bool closed[3];
    struct stat about;
    int ends[2];
    for (int fd = 0; fd < 3; fd++)
        closed[fd] = fstat(fd, &about) < 0;
    the_command.stderr_is_no_terminal = closed[2] || !S_ISCHR(about.st_mode);
    if ((!closed[0] && !closed[1] && !closed[2]) || pipe2(ends, O_CLOEXEC) < 0)
        return;
    for (int fd = 0; fd < 3; fd++)
        if (closed[fd] && fd != ends[1])
            (void)dup2(ends[1], fd);
    for (int i = 0; i < 2; i++)
        if (ends[i] > 2)
            close(ends[i]);
    if (ends[1] <= 2)
        (void)fcntl(ends[1], F_SETFD, 0);
}

/* If the command is started by a link with the name of one of Solo5's tools, that name is the first
 * argument. */
static char **words_of(int argc, char **argv)
{
    const char *slash = strrchr(argv[0], '/');
    const char *name = slash ? slash + 1 : argv[0];
    if (!is_front(name) && strcmp(name, LINKED_TOOL) != 0)
        return argv + 1;
    char **words = calloc((size_t)argc + 1, sizeof *words);
    if (!words)
        return argv + 1;
    words[0] = (char *)(uintptr_t)name;
    memcpy(words + 1, argv + 1, (size_t)argc * sizeof *words); /* its NULL too */
    return words;
}

/* Returns 0 or an errno. Waits for space if others share a descriptor that does not block. */
static int write_all(int fd, const char *text, size_t len)
{
    while (len) {
        struct pollfd writable = {fd, POLLOUT, 0};
        const ssize_t written = write(fd, text, len);
        if (written >= 0) {
            text += written;
            len -= (size_t)written;
        } else if (errno == EAGAIN)
            (void)poll(&writable, 1, -1);
        else if (errno != EINTR)
            return errno;
    }
    return 0;
}

/* Prints both lines as tender/cli/usage.py does, and to the same descriptor. Managers of unikernels look
 * for the second line. */
static _Noreturn void say_version(const char *front)
{
    char text[256];
    const int fd = front ? STDERR_FILENO : STDOUT_FILENO;
    const int len = snprintf(text, sizeof text,
                             front ? "%s tender, version %s\nABI version %d\n" : "%s %s\nABI version %d\n",
                             front ? front : "tender", TENDER_VERSION, HVT_ABI_VERSION);
    signals_let_in(); /* a signal ends this command while its reader does not read, like any other command */
    const int error = write_all(fd, text, (size_t)len);
    if (!error || front)
        _exit(0);
    if (error == EPIPE)
        _exit(STATUS_PIPE);
    say("stdout: %s", strerror(error));
    _exit(STATUS_CANNOT_START);
}

static bool asks_version(const char *word, bool solo5)
{
    return word && (strcmp(word, "--version") == 0 || (!solo5 && strcmp(word, "-V") == 0));
}

static _Noreturn void need_python(const char *what)
{
    if (the_command.only_native)
        leave_to_python("%s, which TENDER_LAUNCHER=native forbids", what);
    leave_to_python("%s: there is no python3 in %s or in PATH", what, program_directory());
}

/* Finds the file of --example. False: it is not installed. Reports show its path without links and dots. */
static bool find_example(struct request *request)
{
    char *name;
    if (request->example && asprintf(&name, "guests/%s.elf", request->example) >= 0) {
        char *found = find_in_package(name);
        char *plain = found ? realpath(found, NULL) : NULL;
        request->image = plain ? plain : found;
    }
    return request->image;
}

int main(int argc, char **argv)
{
    if (argc < 1)
        return STATUS_CANNOT_START;
    expect_inherited_filter();
    signals_prepare();
    hold_standard_descriptors();
    char **words = the_command.words = words_of(argc, argv);
    const char *launcher = getenv("TENDER_LAUNCHER");
    the_command.only_native = launcher && strcmp(launcher, "native") == 0;

    struct request request = {.solo5 = *words && is_front(*words)};
    request.program = the_command.program = request.solo5 ? *words : "tender";
    if (launcher && *launcher && !the_command.only_native && strcmp(launcher, "python") != 0)
        leave_to_python("Malformed value of TENDER_LAUNCHER");
    if (!*words || (launcher && strcmp(launcher, "python") == 0) ||
        among(*words, pythons, sizeof pythons / sizeof *pythons))
        need_python("this needs Python");
    char **options = words + (request.solo5 || strcmp(*words, "run") == 0);
    if (asks_version(*options, request.solo5))
        say_version(request.solo5 ? *words : NULL);
    if (!request_read(options, environ, &request) || !find_example(&request))
        need_python("these arguments need Python");
    run(&request);
}
