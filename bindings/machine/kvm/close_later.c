#define _GNU_SOURCE
#include "close_later.h"

#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <unistd.h>

#define STACK_BYTES 0x8000

static atomic_int under_way;

static void *close_it(void *fd)
{
    (void)prctl(PR_SET_NAME, "tender-close");
    close((int)(intptr_t)fd);
    atomic_fetch_sub(&under_way, 1);
    return NULL;
}

static bool start_closing(int fd)
{
    pthread_attr_t attributes;
    pthread_t thread;
    sigset_t all, saved;
    if (pthread_attr_init(&attributes) != 0)
        return false;
    sigfillset(&all); /* signals are for those who handle them */
    pthread_sigmask(SIG_SETMASK, &all, &saved);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK_BYTES > PTHREAD_STACK_MIN ? STACK_BYTES : PTHREAD_STACK_MIN);
    const int error = pthread_create(&thread, &attributes, close_it, (void *)(intptr_t)fd);
    pthread_sigmask(SIG_SETMASK, &saved, NULL);
    pthread_attr_destroy(&attributes);
    return error == 0;
}

/* A fork has none of the threads: its count stays too high by what was under way, and it closes at once the
 * sooner. */
void close_later(int fd)
{
    if (atomic_fetch_add(&under_way, 1) < CLOSES_MAX && start_closing(fd))
        return;
    atomic_fetch_sub(&under_way, 1);
    close(fd);
}
