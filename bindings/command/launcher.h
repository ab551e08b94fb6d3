/*
 * The command `tender` for a plain run, without an interpreter: the declarations that the launcher's files
 * share.
 *
 *   main.c              which path: this one, or Python's
 *   request.c           from arguments to values
 *   devices.c           from values and manifest to open devices
 *   run.c               a backend, the run, signals, the end
 *   net_helper.c        attaches interfaces again, for a command that may not do it itself
 *   observer.c          looks at the guest after its end, for --core
 *   inherited_filter.c  works under an inherited seccomp filter
 *   outputs.c           where the console and the report go
 *   say.c               lines on stderr
 *   python.c            Python's path
 *
 * The rule: until the guest runs, the launcher prints nothing and changes nothing that Python's path
 * could not do again. So every error, and everything that is not served here, ends in leave_to_python():
 * Python reports it with hints, in one place.
 */
#ifndef TENDER_LAUNCHER_H
#define TENDER_LAUNCHER_H

#include <signal.h>
#include <stdarg.h>

#include "device_types.h"
#include "elf_image.h"
#include "exit_report.h"
#include "output.h"
#include "report.h"
#include "request.h"
#include "says.h"
#include "vm.h"

/* ---- python.c */

/* The name that messages begin with, and the arguments to pass on: those after the program's name, with
 * NULL at the end. */
struct command {
    const char *program;
    char **words;
    bool only_native;           /* TENDER_LAUNCHER=native */
    bool stderr_is_no_terminal; /* false: it may be one */
};
extern struct command the_command;

/* Executes Python's `tender` with the same arguments. If there is no Python, prints `format` and exits with
 * status 1. */
_Noreturn void leave_to_python(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Executes it with other arguments; returns if that fails. */
void execute_python(char **words);

/* Returns the path of a file of the installed package; the caller frees it. NULL if there is no package. */
char *find_in_package(const char *name);

/* Describes where find_in_package() looks, for a message; the caller frees it. NULL if memory is short. */
char *package_places(void);
/* The directory that contains this program, with links resolved, for a message. */
const char *program_directory(void);
/* The file of the package that this user may not read; NULL: there is no such file. */
extern const char *unreadable_package;

/* What to do if it found nothing. */
#define COPY_HINT                                                                                            \
    "a copy of the program alone does not work: make a symbolic link to the installed `tender`, or "         \
    "install the package here"
#define UNREADABLE_HINT                                                                                      \
    "it is installed, but not for your user, as under umask 077: chmod -R a+rX that directory, or "          \
    "reinstall the package"

/* ---- say.c */

/* Prints `PROGRAM: text` on stderr; text after a newline becomes a line of its own. If there is no space, it
 * waits until `hurried` (below) is set. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The same for a message before the guest starts that is not an error: dropped if there is no space within a
 * second. */
void say_notice(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Prints `PROGRAM: hint: text`. */
void say_hint(const char *text);
/* Returns a name from outside in a form that may stand in such a line, which a newline would end. The
 * result is never freed. */
const char *shown(const char *name);

/* How to write to `fd`. A terminal gets a descriptor of our own, because the flags of `fd` belong to its
 * owner. */
struct output output_of(int fd);
/* The same for stderr. The first call must come before a filter refuses the calls that it makes. */
struct output stderr_output(void);
/* output_write() until `until_ns`, or shorter once `hurried` is set. Succeeds if there is no output. */
int write_output(const struct output *output, const char *text, size_t length, uint64_t until_ns);

/* ---- outputs.c */

/* Opens the target of --json, if it is given. It must not be a file that the guest is made of, or that the
 * command also writes to in another way. */
void report_open(const struct request *request);
/* Returns the descriptor that --console names, or CONSOLE_DISCARD. It must not be a file that the guest
 * is made of. */
int console_open(const struct request *request);
/* Call it when nothing can be left to Python any more: empties the report's file. */
void report_begin(void);
/* Writes the report of a guest that is not started, if Python will not write it. */
void report_refused(const struct report_about *about, const char *text);
/* Call it before Python takes over and opens the report again: the reader of a FIFO must not see its end in
 * between. */
void report_keep(void);
/* fd -1: no report is wanted. Its name for the message if it cannot be written; empty: no message. */
struct output report_output(void);
const char *report_name(void);
/* After report_begin(): makes the line, to which the observer of the end may add (vm/report.h). Then once
 * report_end(), which writes it. Both do nothing if there is no report. */
void report_prepare(const struct report_about *about, const struct told_exit *told,
                    const struct vm_event *event, const struct vm_shared *shared);
void report_end(void);

/* ---- devices.c */

struct devices {
    struct mft manifest; /* the manifest that the guest will see */
};

/* Opens what the request names for the image's devices, and attaches it to `vm`. `ring_mode` is the mode that
 * the guest will be offered if it runs on KVM. */
void devices_attach(const struct request *request, const struct elf_image *image, struct vm *vm,
                    uint32_t ring_mode, struct devices *devices);

/* Undoes what outlives the descriptors of this run's devices; repeated calls are allowed, and a signal
 * handler may call it. Defined in run.c, which has the devices. */
void devices_leave(void);

/* ---- net_helper.c */

/* Starts the helper for a run on KVM, before the machine and the guest's memory are made. 0 or -errno. */
int net_helper_begin(const struct vm *devices);
/* A net_attacher of device.h that uses the helper. */
int net_helper_attach(const struct vm *devices, uint32_t handle, struct device_error *error);
/* Ends the helper, if there is one, because there will be no run on KVM. (It also ends with this process.) */
void net_helper_end(void);

/* ---- inherited_filter.c */

/* From now on, a call that a filter answers with SIGSYS fails with ENOSYS, or is replaced by other calls. */
void expect_inherited_filter(void);
extern volatile sig_atomic_t under_inherited_filter; /* such a call has been refused */

/* ---- run.c */

/* A signal or a time limit ends the command: from then on it waits for a slow reader at most one second. */
extern volatile sig_atomic_t hurried;

/* Call it at the start: SIGINT and SIGTERM then wait until there is a handler for them, and SIGPIPE and
 * SIGXFSZ end nothing. */
void signals_prepare(void);
/* The image's name, once it is known. */
const char *image_name(void);
/* The first SIGINT or SIGTERM, which ends the command; 0: none has come. A second one kills it. */
int signal_caught(void);
/* Unblocks the signals that signals_prepare() has blocked, even if an inherited mask blocked them. */
void signals_let_in(void);
/* The same if no guest will run: the signals only set `hurried`. */
void signals_let_in_to_hurry(void);
/* Before Python is executed: blocks the signals that Python handles until it lets them in
 * (tender/cli/run.py). */
void signals_hand_over(void);

_Noreturn void run(const struct request *request);

#endif
