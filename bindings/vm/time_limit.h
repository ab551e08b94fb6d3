/*
 * A time limit of a run: a thread that stops the VM. It is a thread of C's: what replaces Python's threads by
 * something else, as gevent does, does not reach it. The command has SIGALRM in its place, and no thread.
 */
#ifndef TENDER_TIME_LIMIT_H
#define TENDER_TIME_LIMIT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct vm;

struct time_limit {
    struct vm *vm; /* NULL: none is under way */
    bool timed_out;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool over; /* the run is */
    uint64_t deadline_ns;
};

/* From now on; NO_LIMIT: there is none. 0, or -errno: there is no thread to be had. */
int time_limit_begin(struct time_limit *limit, struct vm *vm, uint64_t limit_ns);

/* `timed_out` says from now on whether it stopped the VM. Idempotent, by one thread at a time. */
void time_limit_end(struct time_limit *limit);

#endif
