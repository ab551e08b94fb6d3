/* walltime. Monotonic time is the guest's own: the time stamp counter and the frequency in boot info. */
#define _GNU_SOURCE
#include <time.h>

#include "hypercall.h"

uint64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

enum verdict hc_walltime(struct vm *vm, union hypercall_args *args)
{
    (void)vm;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    args->walltime.nsecs = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    return CONTINUE;
}
