/*
 * How a run of the command ended, for programs: the one line of JSON that --json asks for. docs/cli.md says
 * what stands in it; a run that Python serves has the same from tender/cli/report.py, and a test compares.
 */
#ifndef TENDER_REPORT_H
#define TENDER_REPORT_H

#include "exit_report.h"

/* For any line: of an image's name and a message each byte may become six. */
#define REPORT_BYTES 32768

/* What is known of a run besides its end. */
struct report_about {
    const char *image; /* its name as given */
    int32_t signal;    /* the SIGINT or SIGTERM that came; 0: none */
    const char *backend;
    uint32_t isolation; /* enum isolation_layer */
    uint64_t start_ns, vm_created_ns;
};

/* Writes the line, with its newline, and returns its length. Of a guest that was not started (told->error)
 * `event` and `shared` are not looked at. */
size_t report_write(char to[REPORT_BYTES], const struct report_about *about, const struct told_exit *told,
                    const struct vm_event *event, const struct vm_shared *shared);

#endif
