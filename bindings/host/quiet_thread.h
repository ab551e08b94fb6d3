/*
 * Starts a thread of ours in a process that may belong to others. The thread blocks all signals, so
 * that the threads that handle signals receive them.
 */
#ifndef TENDER_QUIET_THREAD_H
#define TENDER_QUIET_THREAD_H

#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>

/* Returns 0 or an error number. `thread` NULL: the thread is detached, so nobody joins it. */
static inline int quiet_thread(pthread_t *thread, size_t stack_bytes, void *(*body)(void *), void *argument)
{
    const size_t least = (size_t)PTHREAD_STACK_MIN;
    pthread_attr_t attributes;
    pthread_t detached;
    sigset_t all, saved;
    int error = pthread_attr_init(&attributes);
    if (error)
        return error;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &saved);
    pthread_attr_setstacksize(&attributes, stack_bytes > least ? stack_bytes : least);
    if (!thread)
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    error = pthread_create(thread ? thread : &detached, &attributes, body, argument);
    pthread_sigmask(SIG_SETMASK, &saved, NULL);
    pthread_attr_destroy(&attributes);
    return error;
}

#endif
