/*
 * Python's path: executes Python's `tender`, which is installed next to this file, or prints a message if
 * there is none.
 *
 *   BIN/tender                                        this program, with links resolved
 *   BIN/python3                                       or else the one in PATH
 *   BIN/../lib/python3.N/site-packages/tender/        or dist-packages
 *   BIN/../tender/                                    after pip install --target
 *
 * Without `site` (-I -S) the interpreter starts in half the time; it is given the one directory that it
 * needs. Any other layout takes the slow path: the interpreter looks for the package in its own
 * directories, with the code `elsewhere`. It gets -P, because without -P Python imports from the working
 * directory first.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launcher.h"
#include "machine.h"
#include "observer.h"

struct command the_command = {.program = "tender"};

/* Returns the directory that contains this program, with links resolved; NULL if it is not known. */
static const char *bin_directory(void)
{
    static char *found;
    const char *executed = (const char *)(uintptr_t)getauxval(AT_EXECFN);
    if (!found && executed) {
        found = realpath(executed, NULL);
        char *last = found ? strrchr(found, '/') : NULL;
        if (last)
            *last = '\0';
    }
    return found;
}

static int is_python(const struct dirent *entry)
{
    return strncmp(entry->d_name, "python3", strlen("python3")) == 0;
}

const char *unreadable_package;

/* Returns `path`, which is allocated, if it can be read. */
static char *readable(char *path)
{
    if (access(path, R_OK) == 0)
        return path;
    if (errno == EACCES && !unreadable_package)
        unreadable_package = path;
    else
        free(path);
    return NULL;
}

static char *existing(const char *bin, const char *python, const char *packages, const char *name)
{
    char *path;
    return asprintf(&path, "%s/../lib/%s/%s/tender/%s", bin, python, packages, name) < 0 ? NULL
                                                                                         : readable(path);
}

char *find_in_package(const char *name)
{
    static const char *const packages[] = {"site-packages", "dist-packages"};
    const char *bin = bin_directory();
    char *found = bin ? existing(bin, TENDER_PYTHON, packages[0], name) : NULL;
    char *lib;
    if (found || !bin || asprintf(&lib, "%s/../lib", bin) < 0)
        return found;
    struct dirent **pythons;
    int count = scandir(lib, &pythons, is_python, alphasort);
    for (size_t p = 0; p < sizeof packages / sizeof *packages; p++)
        for (int i = 0; i < count && !found; i++)
            found = existing(bin, pythons[i]->d_name, packages[p], name);
    free(lib);
    char *in_target;
    if (!found && asprintf(&in_target, "%s/../tender/%s", bin, name) >= 0)
        found = readable(in_target);
    return found;
}

/* Code for the interpreter: like `-m tender`, with a clear message if there is no such package, as next to a
 * copy of this program. Its first arguments are the name that messages begin with, a hint or nothing, and
 * where the launcher looked. It removes the working directory from sys.path itself: a Python before 3.11,
 * which PATH may name, does not know the option -P. */
static const char elsewhere[] =
    "import sys\n"
    "program, hint, places = sys.argv[1:4]\n"
    "del sys.argv[1:4], sys.path[:sys.path[:1] == ['']]\n"
    "if sys.version_info < (3, 11):\n"
    "    version = '%d.%d' % sys.version_info[:2]\n"
    "    sys.exit(f'{program}: Python 3.11 or later is needed, but {sys.executable} is Python {version}')\n"
    "try:\n"
    "    from tender.cli.main import entry\n"
    "except ModuleNotFoundError as error:\n"
    "    if error.name and error.name.split('.')[0] != 'tender':\n"
    "        raise\n"
    "    paths = ', '.join(sys.path) or 'no directory'\n"
    "    lines = [f'the Python package tender cannot be found: it is not in {places}, nor where '\n"
    "             f'{sys.executable} looks: {paths}']\n"
    "    lines += ['hint: ' + hint] if hint else []\n"
    "    sys.exit('\\n'.join(f'{program}: {line}' for line in lines))\n"
    "entry()\n";

char *package_places(void)
{
    const char *bin = bin_directory();
    char *places;
    const int made =
        !bin ? asprintf(&places, "the directory of this program, which is not known: was its file deleted?")
        : unreadable_package
            ? asprintf(&places, "%s, which you may not read (%s)", unreadable_package, strerror(EACCES))
            : asprintf(&places, "%s/../lib/python3*/{site,dist}-packages/tender or %s/../tender", bin, bin);
    return made < 0 ? NULL : places;
}

const char *program_directory(void)
{
    const char *bin = bin_directory();
    return bin ? bin : "the directory of this program, which is not known,";
}

void execute_python(char **words)
{
    /* With another user's rights, nothing is executed that PATH, or the directory of a link, has chosen. */
    if (getauxval(AT_SECURE))
        return;
    size_t count = 0;
    while (words[count])
        count++;
    char **argv = calloc(count + 10, sizeof *argv);
    const char *bin = bin_directory();
    char *python = NULL, *launch = find_in_package("cli/launch.py");
    if (!argv || (bin && asprintf(&python, "%s/python3", bin) < 0))
        return;
    size_t at = 0;
    argv[at++] = python && access(python, X_OK) == 0 ? python : (char *)(uintptr_t)"python3";
    const char *const direct[] = {"-I", "-S", "-X", "utf8", launch};
    char *places = launch ? NULL : package_places();
    const char *const copy_hint = unreadable_package ? UNREADABLE_HINT : COPY_HINT;
    const char *const hint = strcmp(the_command.program, "tender") == 0 ? copy_hint : "";
    const char *const anywhere[] = {"-X", "utf8", "-c", elsewhere, the_command.program, hint, places};
    const char *const *options = launch ? direct : anywhere;
    /* -X utf8: arguments reach the guest byte for byte, whatever the locale. */
    for (size_t i = 0; i < (launch ? sizeof direct : sizeof anywhere) / sizeof *options; i++)
        argv[at++] = (char *)(uintptr_t)options[i];
    memcpy(argv + at, words, count * sizeof *words);
    /* A filter that has refused our calls would kill an interpreter, which makes more calls. */
    if (under_inherited_filter)
        return;
    signals_hand_over();
    execvp(argv[0], argv);
}

void leave_to_python(const char *format, ...)
{
    net_helper_end();
    observer_tell(OBSERVER_NOTHING);
    devices_leave();
    report_keep();
    if (!the_command.only_native && !signal_caught())
        execute_python(the_command.words);
    signals_let_in_to_hurry();
    char text[8192];
    va_list arguments;
    va_start(arguments, format);
    if (signal_caught()) /* whatever else failed because of the signal */
        (void)snprintf(text, sizeof text, says_signal, signal_caught());
    else
        (void)vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    say("%s", text);
    const struct report_about about = {.image = image_name(), .signal = signal_caught()};
    report_refused(&about, text);
    _exit(STATUS_CANNOT_START);
}
