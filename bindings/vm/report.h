/*
 * How a run of the command ended, for programs: the one line of JSON that --json requests. docs/cli.md lists
 * its fields. A run that Python serves gets the same line from tender/cli/report.py, and a test compares the
 * two.
 */
#ifndef TENDER_REPORT_H
#define TENDER_REPORT_H

#include "exit_report.h"

/* Enough for any line: each byte of the image's name and of a message may become six. */
#define REPORT_BYTES 32768

/* For the crash report in that line. */
#define CRASH_REPORT_BYTES (256u << 10)

/*
 * The line as it waits to be written. While `open` is set, the observer of the end (command/observer.c) may
 * make it longer: it stops this process, puts the crash report behind the other fields and then writes the
 * new length. The first bytes up to the line's last two stay as they are. Pages that no report uses are never
 * touched.
 */
struct report_line {
    volatile uint64_t open, length;
    char text[REPORT_BYTES + CRASH_REPORT_BYTES];
};
extern struct report_line the_report_line __attribute__((visibility("hidden")));

/* What is known about a run in addition to its end. */
struct report_about {
    const char *image; /* its name as given */
    int32_t signal;    /* the SIGINT or SIGTERM that arrived; 0: none */
    const char *backend;
    uint32_t isolation; /* enum isolation_layer */
    uint64_t start_ns, vm_created_ns;
};

/* Writes the line, with its newline, and returns its length. For a guest that was not started (told->error)
 * `event` and `shared` are not used. */
size_t report_write(char to[REPORT_BYTES], const struct report_about *about, const struct told_exit *told,
                    const struct vm_event *event, const struct vm_shared *shared);

#endif
