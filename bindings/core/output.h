/*
 * Writes text to a descriptor that other processes may have too: lines on stderr, a report. No
 * write waits, because a reader may never read. Only the check for space waits, and the caller says
 * for how long. The guest's console has the same rules (devices/console/console_write.c).
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
    bool is_file; /* a regular file, which grows */
};

/* How far a text is written. All zero at the start. */
struct output_progress {
    volatile size_t done;
    volatile size_t asked; /* the bytes of a write() that is in progress; 0: there is none */
};

/*
 * For a signal handler that continues in place of the output_write() that it interrupted. If the
 * signal came before output_write() read the result of its system call, and the result is `known`,
 * the result `answer` is counted. If it is not known, the call may or may not have been made. It
 * counts as made, so that nothing is written twice.
 */
static inline void output_take_over(struct output_progress *progress, bool known, int64_t answer)
{
    const int64_t took = known ? answer : (int64_t)progress->asked;
    if (progress->asked && took > 0)
        progress->done += (size_t)took;
    progress->asked = 0;
}

/*
 * Writes text[done, length). Returns 0 when all of it is written, -EAGAIN if is_over() returned
 * true before that, or another -errno if the text can never be written. is_over() is called every
 * 50 ms, with the caller's `until_ns`.
 */
int output_write(const struct output *output, const char *text, size_t length,
                 struct output_progress *progress, bool (*is_over)(uint64_t until_ns), uint64_t until_ns);

#endif
