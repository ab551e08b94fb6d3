/*
 * The command `tender` for a plain run, without an interpreter: what the launcher's files share.
 *
 *   main.c      which path: this one, or Python's
 *   request.c   words to values
 *   devices.c   values and manifest to open devices
 *   run.c       a backend, the run, signals, the end
 *   net_helper.c  interfaces that are attached again, for a command that may not
 *   inherited_filter.c  under an inherited system-call filter
 *   outputs.c   where the console and the report go
 *   say.c       lines on stderr
 *   python.c    Python's path
 *
 * The rule: until the guest runs, nothing is said and nothing is changed that Python's path could not do
 * again. So whatever is wrong or not served here ends in leave_to_python(), which says it with hints, in one
 * place.
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

/* Whom diagnostics begin with, and the words to hand on: those behind the program's name, NULL at the end. */
struct command {
    const char *program;
    char **words;
    bool only_native; /* TENDER_LAUNCHER=native */
};
extern struct command the_command;

/* Executes Python's `tender` with the same words. Where there is none, `format` is said and the status is 1.
 */
_Noreturn void leave_to_python(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Executes it with other words; returns if that cannot be. */
void execute_python(char **words);

/* The path of a file of the installed package, the caller's to free; NULL if the package is not found. */
char *find_in_package(const char *name);

/* Where find_in_package() looks, for a message; the caller's to free, NULL for want of memory. */
char *package_places(void);
/* The directory that this program really lies in, for a message. */
const char *program_directory(void);
/* The file of the package that this user may not read; NULL: there is none, or what was found can be read. */
extern const char *unreadable_package;

/* The way out where it found nothing. */
#define COPY_HINT                                                                                            \
    "a copy of the program alone does not work: make a symbolic link to the installed `tender`, or "         \
    "install the package here"
#define UNREADABLE_HINT                                                                                      \
    "it is installed, but not for your user, as under umask 077: chmod -R a+rX that directory, or install "  \
    "the package anew"

/* ---- say.c */

/* `PROGRAM: text` on stderr; what is behind a newline is a line of its own. It waits for space there as long
 * as nobody hurries (below). */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The same of what is no error, before the guest starts: left out if there is no space within a second. */
void say_notice(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* `PROGRAM: hint: text`. */
void say_hint(const char *text);
/* A name from outside as it may stand in such a line, which a newline would end; never freed. */
const char *shown(const char *name);

/* How `fd` is written to: a terminal by a descriptor of our own, for the other's flags are its owner's. */
struct output output_of(int fd);
/* Of stderr. First before a filter refuses what it asks. */
struct output stderr_output(void);
/* output_write() until then, or shorter where something hurries; to none it succeeds. */
int write_output(const struct output *output, const char *text, size_t length, uint64_t until_ns);

/* ---- outputs.c */

/* What --json names, if it is given: no file that the guest is made of, or that is written to besides. */
void report_open(const struct request *request);
/* The descriptor that --console names, or CONSOLE_DISCARD: no file that the guest is made of. */
int console_open(const struct request *request);
/* No more is left to Python: the report's file is emptied. */
void report_begin(void);
/* The same where nobody else will tell of a guest that is not started. */
void report_refused(const struct report_about *about, const char *text);
/* All is left to Python, which opens it again: whoever reads a FIFO must not see its end meanwhile. */
void report_keep(void);
/* fd -1: none is wanted. Its name in what is said where it cannot be written, empty if nothing is. */
struct output report_output(void);
const char *report_name(void);
/* Behind report_begin(), once; without a report it does nothing. */
void report_end(const struct report_about *about, const struct told_exit *told, const struct vm_event *event,
                const struct vm_shared *shared);

/* ---- devices.c */

struct devices {
    struct mft manifest; /* as the guest will see it */
};

/* Opens what the request gives to the image's devices and attaches it to `vm`; the mode is the ring's that
 * its guest will be offered, if it runs on KVM. */
void devices_attach(const struct request *request, const struct elf_image *image, struct vm *vm,
                    uint32_t ring_mode, struct devices *devices);

/* What outlives the descriptors of this run's devices is undone, again if need be; a signal handler may ask
 * for it. In run.c, where they are kept. */
void devices_leave(void);

/* ---- net_helper.c */

/* For a run on KVM, before its machine and the guest's memory are there. 0 or -errno. */
int net_helper_begin(const struct vm *devices);
/* A net_attacher of device.h, by the helper. */
int net_helper_attach(const struct vm *devices, uint32_t handle, struct device_error *error);
/* There will be no run on KVM: it is ended, if there is one. (With this process it ends by itself.) */
void net_helper_end(void);

/* ---- inherited_filter.c */

/* From now on a call that a filter answers with SIGSYS fails with ENOSYS, or is done by other calls. */
void expect_inherited_filter(void);
extern volatile sig_atomic_t under_inherited_filter; /* it has happened */

/* ---- run.c */

/* A signal or a time limit ends the command: from then on no reader is waited for longer than a second. */
extern volatile sig_atomic_t hurried;

/* From the start on: a SIGINT or SIGTERM waits until it is heard, and neither a SIGPIPE nor a
 * SIGXFSZ ends anything. */
void signals_prepare(void);
/* The image's name, once it is known. */
const char *image_name(void);
/* The first SIGINT or SIGTERM, which ends the command; 0: none has come. A second one kills it. */
int signal_caught(void);
/* What signals_prepare() holds back is let in, and so is what an inherited mask held back of them. */
void signals_let_in(void);
/* The same where no guest will run: they only hurry. */
void signals_let_in_to_hurry(void);
/* Before Python is executed: what is its business is held back until it lets it in (tender/cli/run.py). */
void signals_hand_over(void);

_Noreturn void run(const struct request *request);

#endif
