/*
 * The frequency of the time stamp counter: every source that answers here agrees with a measurement, and all
 * threads get one answer. Prints one TAP line for each check and exits 1 if one fails.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "holds.h"
#include "tsc.h"

#define THREADS   8
#define PPM_LIMIT 1000

static uint64_t monotonic_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static double ppm(uint64_t a, uint64_t b)
{
    return ((double)a - (double)b) / (double)b * 1e6;
}

static bool agrees(uint64_t a, uint64_t b)
{
    return ppm(a, b) <= PPM_LIMIT && ppm(a, b) >= -PPM_LIMIT;
}

static void *ask(void *answer)
{
    *(uint64_t *)answer = tsc_hz();
    return NULL;
}

int main(void)
{
    static const char *const names[] = {"", "CPUID", "hypervisor", "time page", "perf", "calibrated"};

    HOLDS(tsc_hz_source() == TSC_UNKNOWN);
    HOLDS(tsc_hz_from(TSC_UNKNOWN) == 0);

    /* At once, before anybody took a sample: all the threads measure, if it comes to that. */
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
    uint64_t hz = tsc_hz();
    HOLDS(hz == answers[0] && hz != 0);
    HOLDS(tsc_hz_source() >= TSC_CPUID && tsc_hz_source() <= TSC_CALIBRATED);
    printf("# source: %s, %llu Hz\n", names[tsc_hz_source()], (unsigned long long)hz);

    uint64_t calibrated = tsc_hz_from(TSC_CALIBRATED);
    HOLDS(agrees(hz, calibrated));
    for (int source = TSC_CPUID; source <= TSC_CALIBRATED; source++) {
        uint64_t start_us = monotonic_us();
        uint64_t other = tsc_hz_from((enum tsc_source)source);
        uint64_t took_us = monotonic_us() - start_us;
        if (!other) {
            printf("# %s: no answer, after %llu us\n", names[source], (unsigned long long)took_us);
            continue;
        }
        printf("# %s: %llu Hz, %.1f ppm from the calibration, %llu us\n", names[source],
               (unsigned long long)other, ppm(other, calibrated), (unsigned long long)took_us);
        char claim[64];
        (void)snprintf(claim, sizeof claim, "%s agrees with the calibration", names[source]);
        check(agrees(other, calibrated), claim, __LINE__);
    }

    /* The sample is old enough by now: another measurement does not wait. */
    tsc_sample();
    HOLDS(agrees(tsc_hz_from(TSC_CALIBRATED), hz));
    HOLDS(tsc_hz() == hz);
    return claims_end();
}
