/* The host's monotonic clock, in nanoseconds. */
#define _GNU_SOURCE
#include <time.h>

#include "vm.h"

uint64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
