/*
 * Clocks. Monotonic time is the time stamp counter times a fixed-point factor. It needs no
 * hypercall.
 *
 *     ns = ticks * factor >> shift        factor = 10^9 * 2^shift / Hz, in [2^63, 2^64)
 *
 * The product has 128 bits, so it cannot overflow. The factor has 64 significant bits, so that
 * after 100 years the rounding of the factor causes an error of less than one nanosecond.
 */
#include "kernel.h"

static uint64_t tsc_hz;
static uint64_t tsc_origin;
static uint64_t factor;
static unsigned shift;
static uint64_t last_ns;

static uint64_t tsc_read(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

/*
 * Long division in binary, because libgcc's 128-bit division is not linked. It computes 64 bits of
 * 10^9 / Hz, from the first set bit on. `shift` counts the bits after the binary point.
 */
static void factor_compute(void)
{
    uint64_t whole = 1000000000 / tsc_hz;
    uint64_t rest = 1000000000 % tsc_hz;
    factor = whole;
    shift = 0;
    while (!(factor >> 63)) { /* at most 64 + 34 rounds: 10^9 / Hz is at least 2^-34 */
        bool bit = rest >= tsc_hz - rest;
        rest = bit ? rest - (tsc_hz - rest) : rest + rest;
        factor = factor << 1 | bit;
        shift++;
    }
}

void clock_init(uint64_t hz)
{
    if (hz == 0 || hz >> 34) {
        panic("clock: boot info has a counter frequency of %lu Hz; expected 1 to 2^34 - 1", hz);
    }
    tsc_hz = hz;
    factor_compute();
    tsc_origin = tsc_read();
}

uint64_t clock_monotonic(void)
{
    uint64_t ticks = tsc_read() - tsc_origin;
    uint64_t now_ns = (uint64_t)((unsigned __int128)ticks * factor >> shift);
    /* The counters of two host CPUs may differ by a few ticks, and the vCPU moves between CPUs. */
    if (now_ns < last_ns) {
        return last_ns;
    }
    last_ns = now_ns;
    return now_ns;
}

uint64_t clock_wall(void)
{
    struct hvt_walltime call = {0};
    gate_walltime(&call);
    return call.nsecs;
}

uint64_t clock_tsc_hz(void)
{
    return tsc_hz;
}
