/*
 * A time limit of a run: a thread that stops the VM. The thread is made in C, so libraries that replace
 * Python's threads, such as gevent, do not affect it. The command uses SIGALRM instead, and no thread.
 */
#ifndef TENDER_TIME_LIMIT_H
#define TENDER_TIME_LIMIT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct vm;

struct time_limit {
    struct vm *vm; /* NULL: no limit is active */
    bool timed_out;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool over; /* the run has ended */
    uint64_t deadline_ns;
};

/* Starts the limit now; NO_LIMIT: there is none. 0, or -errno if no thread can be made. */
int time_limit_begin(struct time_limit *limit, struct vm *vm, uint64_t limit_ns);

/* Ends the limit. From then on `timed_out` says whether it stopped the VM. Idempotent, by one thread at a
 * time. */
void time_limit_end(struct time_limit *limit);

#endif
