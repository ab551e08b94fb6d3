#include "time_limit.h"

#include <errno.h>
#include <time.h>

#include "exit_report_types.h"
#include "quiet_thread.h"
#include "vm.h"

#define STACK_BYTES 0x10000
#define NS_PER_S    1000000000u

static void *limit_body(void *of)
{
    struct time_limit *limit = of;
    const struct timespec deadline = {(time_t)(limit->deadline_ns / NS_PER_S),
                                      (long)(limit->deadline_ns % NS_PER_S)};
    pthread_mutex_lock(&limit->lock);
    int waited = 0;
    while (!limit->over && waited != ETIMEDOUT)
        waited = pthread_cond_timedwait(&limit->changed, &limit->lock, &deadline);
    if (!limit->over) {
        limit->timed_out = true;
        vm_stop(limit->vm);
    }
    pthread_mutex_unlock(&limit->lock);
    return NULL;
}

int time_limit_begin(struct time_limit *limit, struct vm *vm, uint64_t limit_ns)
{
    if (limit_ns == NO_LIMIT)
        return 0;
    pthread_condattr_t clock;
    limit->vm = vm;
    limit->over = limit->timed_out = false;
    limit->deadline_ns = monotonic_ns() + limit_ns;
    pthread_mutex_init(&limit->lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&limit->changed, &clock);
    pthread_condattr_destroy(&clock);
    const int error = quiet_thread(&limit->thread, STACK_BYTES, limit_body, limit);
    if (error)
        limit->vm = NULL;
    return -error;
}

void time_limit_end(struct time_limit *limit)
{
    if (!limit->vm)
        return;
    pthread_mutex_lock(&limit->lock);
    limit->over = true;
    pthread_cond_signal(&limit->changed);
    pthread_mutex_unlock(&limit->lock);
    pthread_join(limit->thread, NULL);
    pthread_cond_destroy(&limit->changed);
    pthread_mutex_destroy(&limit->lock);
    limit->vm = NULL;
}
