/*
 * The frequency of the time stamp counter, by which a guest makes monotonic time; without KVM nobody tells.
 *
 * Sources, the first that answers: what the CPU says, what the hypervisor says, what the kernel says, and a
 * measurement. Found once a process. Any thread.
 */
#ifndef TENDER_SANDBOX_TSC_H
#define TENDER_SANDBOX_TSC_H

#include <stdint.h>

enum tsc_source {
    TSC_UNKNOWN = 0,    /* tsc_hz() was not asked yet */
    TSC_CPUID = 1,      /* CPUID leaf 0x15: crystal and ratio */
    TSC_HYPERVISOR = 2, /* CPUID leaf 0x40000010: kHz */
    TSC_TIME_PAGE = 3,  /* the kernel's own, as it tells the vDSO */
    TSC_PERF = 4,       /* the kernel's own, as perf_event_open(2)'s page gives it (cap_user_time) */
    TSC_CALIBRATED = 5, /* against CLOCK_MONOTONIC_RAW, within some ppm */
};

#define TSC_CALIBRATION_NS 5000000 /* at least so long */

/*
 * Takes the measurement's first sample, if nobody has: a microsecond. Called early, when the library is
 * loaded or a VM made, it saves tsc_hz() the wait.
 */
void tsc_sample(void);

/* Hz; the same at every call. The first may sleep for what is left of TSC_CALIBRATION_NS since tsc_sample().
 */
uint64_t tsc_hz(void);
enum tsc_source tsc_hz_source(void);

/* One source by itself: Hz, or 0 if it has no answer. For tsc_hz(), `tender doctor` and tests. */
uint64_t tsc_hz_from(enum tsc_source source);

#endif
