/*
 * Text for a descriptor that others may have too: lines on stderr, a report. No write waits, for a reader may
 * never read; what waits is a look for space, and the caller says how long. The guest's console has the same
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

/* How far a text is written; zeros at first. */
struct output_progress {
    volatile size_t done;
    volatile size_t asked; /* bytes that a write is under way for; 0: none is */
};

/* For a signal handler that goes on in place of the output_write() it has interrupted: what that write's call
 * has answered, if the signal came before its answer was read (`known`), is counted. Else it may have been
 * made or not, and counts as made: nothing is written twice. */
static inline void output_take_over(struct output_progress *progress, bool known, int64_t answer)
{
    const int64_t took = known ? answer : (int64_t)progress->asked;
    if (progress->asked && took > 0)
        progress->done += (size_t)took;
    progress->asked = 0;
}

/*
 * Writes text[done, length): 0 once all is, -EAGAIN if is_over() said so before, or -errno where nobody will
 * ever read it. is_over() is asked every 50 ms, with `until_ns` of the caller's.
 */
int output_write(const struct output *output, const char *text, size_t length,
                 struct output_progress *progress, bool (*is_over)(uint64_t until_ns), uint64_t until_ns);

#endif
