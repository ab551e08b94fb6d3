/*
 * The frequency of the time stamp counter: it equals that of a longer measurement made here, and
 * all threads get one answer. Prints one TAP line for each check and exits with 1 if one fails.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <x86intrin.h>

#include "holds.h"
#include "tsc.h"

#define THREADS   8
#define PPM_LIMIT 1000
#define SPAN_NS   50000000

static uint64_t raw_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_RAW, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static double ppm(uint64_t a, uint64_t b)
{
    return ((double)a - (double)b) / (double)b * 1e6;
}

static void *ask(void *answer)
{
    *(uint64_t *)answer = tsc_hz();
    return NULL;
}

int main(void)
{
    const uint64_t start_ns = raw_ns(), start_tsc = __rdtsc();

    /* Immediately, before any thread took a sample: all the threads measure. */
    pthread_t threads[THREADS];
    uint64_t answers[THREADS];
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, ask, &answers[i]) != 0)
            abort();
    bool one_answer = true;
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        one_answer = one_answer && answers[i] == answers[0];
    }
    HOLDS(one_answer);
    HOLDS(answers[0] != 0);
    const uint64_t took_ns = raw_ns() - start_ns;
    HOLDS(tsc_hz() == answers[0]);

    uint64_t end_ns = raw_ns();
    while (end_ns < start_ns + SPAN_NS)
        end_ns = raw_ns();
    const double cycles = (double)(__rdtsc() - start_tsc);
    const uint64_t expected = (uint64_t)(cycles * 1e9 / (double)(end_ns - start_ns));
    printf("# %llu Hz, %.1f ppm from a longer measurement, after %llu us\n", (unsigned long long)answers[0],
           ppm(answers[0], expected), (unsigned long long)took_ns / 1000);
    HOLDS(ppm(answers[0], expected) <= PPM_LIMIT && ppm(answers[0], expected) >= -PPM_LIMIT);
    return claims_end();
}
