/*
 * Text for a descriptor that others may have too: lines on stderr, a report. No write waits, for a reader may
 * never read; what waits is a look for room, and the caller says how long. The guest's console has the same
 * rules (devices/console/console_write.c).
 */
#ifndef TENDER_OUTPUT_H
#define TENDER_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct output {
    int fd;       /* -1: none */
    bool is_pipe; /* pwritev2(RWF_NOWAIT) is worth trying */
    bool is_socket;
    bool is_file; /* a regular one, which grows */
};

/*
 * Writes text[*at, length): 0 once all is, -EAGAIN if is_over() said so before, or -errno where nobody will
 * ever read it. *at goes on with each piece, so that a signal handler may take over. is_over() is asked
 * every 50 ms, with `until_ns` of the caller's.
 */
int output_write(const struct output *output, const char *text, size_t length, volatile size_t *at,
                 bool (*is_over)(uint64_t until_ns), uint64_t until_ns);

#endif
