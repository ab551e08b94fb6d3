/* See tsc.h. Process-wide state is here only: an early sample, and the answer. */
#define _GNU_SOURCE
#include "tsc.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>
#include <x86intrin.h>

#define NS_PER_S UINT64_C(1000000000)

#define TRIPLES    16      /* in a sample */
#define PARTS      5000    /* a measurement is right within one of so many */
#define LONGEST_NS 5000000 /* or it takes this long */
#define NAP_NS     50000
#define AWAKE_NS   1000000 /* two clocks read one after the other differ by less, unless the machine slept */

struct sample {
    uint64_t tsc;
    uint64_t within; /* so many cycles to either side */
    uint64_t clock_ns;
    uint64_t suspended_ns; /* so long was the machine since it booted */
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

/* Not before what stands above it is done, nor after what stands below it has begun (SDM, RDTSC). */
static uint64_t rdtsc_in_order(void)
{
    _mm_lfence();
    uint64_t tsc = __rdtsc();
    _mm_lfence();
    return tsc;
}

/* The clock between two readings of the counter; of several, the one that nothing came between. */
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

/* Written once by whoever turns 0 into 1, and read by those who see 2. */
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

/* The clock stood still while the machine slept; the counter went on or began anew. */
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
    /* While another thread is still at it, this one measures from here. */
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
        nanosleep(&nap, NULL); /* a signal only makes this loop look again */
    }
    return 0;
}

uint64_t tsc_hz(void)
{
    static _Atomic uint64_t answer;
    uint64_t found = atomic_load_explicit(&answer, memory_order_relaxed); /* a word that stands for itself */
    if (found)
        return found;
    /* Two threads may measure; what the first one puts here is everybody's. */
    uint64_t hz = measure();
    return atomic_compare_exchange_strong(&answer, &found, hz) ? hz : found;
}
