/* See tsc.h. The process-wide state is in this file only: the early sample, and the result. */
#define _GNU_SOURCE
#include "tsc.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>
#include <x86intrin.h>

#define NS_PER_S UINT64_C(1000000000)

#define TRIPLES    16      /* readings in one sample */
#define PARTS      5000    /* a measurement ends when its error is below 1/PARTS, */
#define LONGEST_NS 5000000 /* or after this time */
#define NAP_NS     50000
#define AWAKE_NS   1000000 /* two clocks that are read in sequence differ by less, unless the machine slept */

struct sample {
    uint64_t tsc;
    uint64_t within; /* the error of `tsc`, in cycles to either side */
    uint64_t clock_ns;
    uint64_t suspended_ns; /* how long the machine has been suspended since it booted */
};

static uint64_t clock_ns_of(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static uint64_t raw_ns(void)
{
    return clock_ns_of(CLOCK_MONOTONIC_RAW);
}

/*
 * Reads the counter after all earlier instructions have completed and before any later one begins
 * (SDM, RDTSC).
 */
static uint64_t rdtsc_in_order(void)
{
    _mm_lfence();
    uint64_t tsc = __rdtsc();
    _mm_lfence();
    return tsc;
}

/* Reads the clock between two readings of the counter, several times, and takes the shortest of them. */
static struct sample take_sample(void)
{
    struct sample best = {.within = UINT64_MAX};
    uint64_t before = rdtsc_in_order();
    for (int i = 0; i < TRIPLES; i++) {
        uint64_t clock_ns = raw_ns();
        uint64_t after = rdtsc_in_order();
        uint64_t half = (after - before) / 2;
        if (half < best.within)
            best = (struct sample){before + half, half, clock_ns, 0};
        before = after;
    }
    uint64_t monotonic_ns = clock_ns_of(CLOCK_MONOTONIC);
    best.suspended_ns = clock_ns_of(CLOCK_BOOTTIME) - monotonic_ns;
    return best;
}

/* The thread that changes the state from 0 to 1 writes `early`, once. A thread that reads 2 may read it. */
static struct sample early;
static atomic_int early_state;

void tsc_sample(void)
{
    int empty = 0;
    if (!atomic_compare_exchange_strong(&early_state, &empty, 1))
        return;
    early = take_sample();
    atomic_store_explicit(&early_state, 2, memory_order_release); /* pairs with measure() */
}

/* While a machine sleeps, the clock stands still, and the counter goes on or restarts. */
static bool slept_between(const struct sample *first, const struct sample *second)
{
    return second->tsc <= first->tsc || second->suspended_ns > first->suspended_ns + AWAKE_NS;
}

static bool far_apart(const struct sample *first, const struct sample *second)
{
    return (second->tsc - first->tsc) / PARTS > first->within + second->within ||
           second->clock_ns - first->clock_ns > LONGEST_NS;
}

static uint64_t measure(void)
{
    tsc_sample();
    /* If another thread is still taking the early sample, this thread takes a first sample of its own. */
    bool taken = atomic_load_explicit(&early_state, memory_order_acquire) == 2; /* pairs with tsc_sample() */
    struct sample first = taken ? early : take_sample();
    for (int sleeps = 0; sleeps < 2;) {
        struct sample second = take_sample();
        if (slept_between(&first, &second)) {
            first = second;
            sleeps++;
        } else if (far_apart(&first, &second)) {
            /* 128 bits: the first sample may be days old. */
            unsigned __int128 cycles = second.tsc - first.tsc;
            return (uint64_t)(cycles * NS_PER_S / (second.clock_ns - first.clock_ns));
        }
        const struct timespec nap = {0, NAP_NS};
        nanosleep(&nap, NULL); /* a signal only ends the nap early */
    }
    return 0;
}

uint64_t tsc_hz(void)
{
    static _Atomic uint64_t answer;
    uint64_t found = atomic_load_explicit(&answer, memory_order_relaxed); /* no other data depends on it */
    if (found)
        return found;
    /* Two threads may measure at the same time. All use the result that is stored first. */
    uint64_t hz = measure();
    return atomic_compare_exchange_strong(&answer, &found, hz) ? hz : found;
}
