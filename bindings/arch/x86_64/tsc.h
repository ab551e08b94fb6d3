/*
 * The frequency of the time stamp counter, from which a guest computes monotonic time. Without KVM
 * nothing reports the frequency, so it is measured against CLOCK_MONOTONIC_RAW, once per process.
 * For any thread.
 */
#ifndef TENDER_TSC_H
#define TENDER_TSC_H

#include <stdint.h>

/*
 * Takes the first sample of the measurement, if there is none yet. This takes 1 us. If it is called
 * early, when the library is loaded or a VM is made, tsc_hz() does not have to wait.
 */
void tsc_sample(void);

/*
 * Returns the frequency in Hz, or 0 if the counter does not run at a constant rate. Every call
 * returns the same value. If the clock is based on the counter, the error is at most 1/5000, and
 * mostly a few millionths: it becomes smaller the more time has passed since tsc_sample(). The
 * first call may sleep until about 0.2 ms after tsc_sample(), and until at most 5 ms after it where
 * the clock is slow to read.
 */
uint64_t tsc_hz(void);

#endif
