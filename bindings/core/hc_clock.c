/* walltime. Monotonic time is the guest's own: the time stamp counter and the frequency in boot info. */
#define _GNU_SOURCE
#include <time.h>

#include "hypercall.h"

enum verdict hc_walltime(struct vm *vm, union hypercall_args *args)
{
    (void)vm;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    args->walltime.nsecs = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    return CONTINUE;
}
