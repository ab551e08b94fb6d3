/*
 * The frequency of the time stamp counter, by which a guest makes monotonic time; without KVM nobody tells.
 * It is measured against CLOCK_MONOTONIC_RAW, once a process. Any thread.
 */
#ifndef TENDER_TSC_H
#define TENDER_TSC_H

#include <stdint.h>

/*
 * Takes the measurement's first sample, if nobody has: a microsecond. Called early, when the library is
 * loaded or a VM made, it saves tsc_hz() the wait.
 */
void tsc_sample(void);

/*
 * Hz, or 0 where the counter does not run at one rate; the same at every call. Right within a five-thousandth
 * where the clock is the counter's own, and mostly within some millionths: the more time since tsc_sample(),
 * the better. The first call may sleep: for some 0.2 ms since tsc_sample(), and for at most 5 ms where the
 * clock is slow to read.
 */
uint64_t tsc_hz(void);

#endif
