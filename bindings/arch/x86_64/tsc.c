/* See tsc.h. Process-wide state is here only: an early sample, and the answer in one word with its source. */
#define _GNU_SOURCE
#include "tsc.h"

#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#define NS_PER_S UINT64_C(1000000000)

/* CPUID, Intel SDM volume 2. The hypervisor's leaves are a convention of VMware's that KVM's monitors follow.
 */
#define LEAF_FEATURES          1
#define LEAF_TSC               0x15
#define LEAF_HYPERVISOR        0x40000000
#define LEAF_HYPERVISOR_TIMING 0x40000010
#define FEATURE_HYPERVISOR     (1u << 31) /* ECX of LEAF_FEATURES */

/* Leaf 0x40000010 is free for other uses elsewhere: what is no frequency of a TSC is not taken for one. */
#define HZ_MIN UINT64_C(100000000)
#define HZ_MAX UINT64_C(20000000000)

#define TRIPLES  8       /* at each end of a calibration */
#define AWAKE_NS 1000000 /* two clocks read one after the other differ by less, unless the machine slept */

static uint64_t plausible(uint64_t hz)
{
    return hz >= HZ_MIN && hz <= HZ_MAX ? hz : 0;
}

static uint64_t hz_of_cpuid(void)
{
    uint32_t denominator, numerator, crystal_hz, edx;
    if (!__get_cpuid_count(LEAF_TSC, 0, &denominator, &numerator, &crystal_hz, &edx))
        return 0;
    if (!denominator || !numerator || !crystal_hz)
        return 0; /* some CPUs give the ratio and leave the crystal to a table of models */
    return plausible((uint64_t)crystal_hz * numerator / denominator);
}

static uint64_t hz_of_hypervisor(void)
{
    uint32_t eax, ebx, ecx, edx;
    if (!__get_cpuid(LEAF_FEATURES, &eax, &ebx, &ecx, &edx) || !(ecx & FEATURE_HYPERVISOR))
        return 0;
    __cpuid(LEAF_HYPERVISOR, eax, ebx, ecx, edx);
    if (eax < LEAF_HYPERVISOR_TIMING || eax >= LEAF_HYPERVISOR + 0x10000)
        return 0;
    __cpuid(LEAF_HYPERVISOR_TIMING, eax, ebx, ecx, edx);
    return plausible((uint64_t)eax * 1000);
}

struct conversion { /* nanoseconds = cycles * mult >> shift */
    uint32_t mult, shift;
};

/* Rounded from a frequency that the kernel keeps in kHz (tsc_khz): rounding to kHz gives it back. */
static uint64_t hz_of_conversion(struct conversion c)
{
    uint64_t khz = ((UINT64_C(1000000) << c.shift) + c.mult / 2) / c.mult;
    return plausible(khz * 1000);
}

/* The page says nanoseconds = cycles * time_mult >> time_shift. */
static uint64_t hz_of_perf_page(const struct perf_event_mmap_page *page)
{
    uint32_t sequence, mult, shift;
    bool valid;
    do {
        sequence = __atomic_load_n(&page->lock, __ATOMIC_ACQUIRE);
        valid = page->cap_user_time;
        mult = page->time_mult;
        shift = page->time_shift;
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
    } while (sequence != __atomic_load_n(&page->lock, __ATOMIC_RELAXED));
    if (!valid || !mult || shift > 32)
        return 0;
    return hz_of_conversion((struct conversion){mult, shift});
}

static uint64_t hz_of_perf(void)
{
    struct perf_event_attr nothing = {
        .type = PERF_TYPE_SOFTWARE,
        .size = sizeof nothing,
        .config = PERF_COUNT_SW_DUMMY,
        .disabled = 1,
        .exclude_kernel = 1, /* as far as perf_event_paranoid lets anyone */
        .exclude_hv = 1,
    };
    int fd = (int)syscall(SYS_perf_event_open, &nothing, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
    if (fd < 0)
        return 0;
    uint64_t hz = 0;
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    void *page = mmap(NULL, page_bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (page != MAP_FAILED) {
        hz = hz_of_perf_page(page);
        munmap(page, page_bytes);
    }
    close(fd);
    return hz;
}

/* ---- calibration ---- */

struct sample {
    uint64_t tsc;
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
    struct sample best = {0, 0, 0};
    uint64_t narrowest = UINT64_MAX;
    uint64_t before = rdtsc_in_order();
    for (int i = 0; i < TRIPLES; i++) {
        uint64_t clock_ns = raw_ns();
        uint64_t after = rdtsc_in_order();
        if (after - before < narrowest) {
            narrowest = after - before;
            best = (struct sample){before + narrowest / 2, clock_ns, 0};
        }
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
    atomic_store_explicit(&early_state, 2, memory_order_release); /* pairs with calibrate() */
}

static void wait_until(uint64_t until_ns)
{
    for (uint64_t now_ns = raw_ns(); now_ns < until_ns; now_ns = raw_ns()) {
        const struct timespec left = {0, (long)(until_ns - now_ns)};
        nanosleep(&left, NULL); /* a signal only makes this loop look again */
    }
}

/* 0 if the machine slept in between: the clock stood still then, the counter went on or began anew. */
static uint64_t hz_between(const struct sample *first, const struct sample *second)
{
    if (second->tsc <= first->tsc || second->suspended_ns > first->suspended_ns + AWAKE_NS)
        return 0;
    /* 128 bits: the first sample may be days old. */
    unsigned __int128 cycles = second->tsc - first->tsc;
    return plausible((uint64_t)(cycles * NS_PER_S / (second->clock_ns - first->clock_ns)));
}

static uint64_t calibrate(void)
{
    tsc_sample();
    /* While another thread is still at it, this one measures from here. */
    bool taken = atomic_load_explicit(&early_state, memory_order_acquire) == 2; /* pairs with tsc_sample() */
    struct sample first = taken ? early : take_sample();
    uint64_t hz = 0;
    for (int attempt = 0; !hz && attempt < 2; attempt++) {
        wait_until(first.clock_ns + TSC_CALIBRATION_NS);
        struct sample second = take_sample();
        hz = hz_between(&first, &second);
        first = second;
    }
    return hz;
}

/* ---- the time page ---- */

#define PAGE_WORDS        512
#define PAGES_BEFORE_VDSO 10
#define CHECK_NS          100000 /* a measurement so long is right within 0.2 percent */
#define CHECK_PARTS       200

/* A counter of 64 bits has a mask of 64 ones, and its conversion behind it. */
static unsigned find_conversions(const uint64_t page[PAGE_WORDS], struct conversion found[2])
{
    unsigned count = 0;
    for (unsigned i = 0; i + 1 < PAGE_WORDS && count < 2; i++) {
        uint32_t mult = (uint32_t)page[i + 1], shift = (uint32_t)(page[i + 1] >> 32);
        if (page[i] == UINT64_MAX && mult && shift && shift <= 32)
            found[count++] = (struct conversion){mult, shift};
    }
    return count;
}

/* A short measurement says whether a frequency can be this counter's: under a paravirtual clock the page's is
 * another's. */
static bool agrees(uint64_t hz, const struct sample *first)
{
    wait_until(first->clock_ns + CHECK_NS);
    struct sample second = take_sample();
    uint64_t measured = hz_between(first, &second);
    uint64_t difference = measured > hz ? measured - hz : hz - measured;
    return measured && difference < hz / CHECK_PARTS;
}

/*
 * The vDSO reads the time from pages that the kernel maps before it (arch/x86/entry/vdso/vma.c). Their layout
 * is the kernel's own affair and has changed, so the two conversions of its one clock source are looked for:
 * the first is being steered by NTP, the second is CLOCK_MONOTONIC_RAW's, rounded from tsc_khz. What is found
 * counts only if a measurement agrees. The pages are read through a pipe, because touching one that is not
 * there would be SIGBUS.
 */
static uint64_t hz_of_time_page(void)
{
    tsc_sample();
    uintptr_t vdso = getauxval(AT_SYSINFO_EHDR);
    bool taken = atomic_load_explicit(&early_state, memory_order_acquire) == 2; /* pairs with tsc_sample() */
    int ends[2];
    if (!vdso || !taken || pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
        return 0;
    uint64_t hz = 0, page[PAGE_WORDS];
    for (uintptr_t i = PAGES_BEFORE_VDSO; i > 0 && !hz; i--) {
        struct conversion found[2];
        if (write(ends[1], (const void *)(vdso - i * sizeof page), sizeof page) != (ssize_t)sizeof page)
            continue;
        if (read(ends[0], page, sizeof page) == (ssize_t)sizeof page && find_conversions(page, found) == 2 &&
            found[0].shift == found[1].shift)
            hz = hz_of_conversion(found[1]);
    }
    close(ends[0]);
    close(ends[1]);
    return hz && agrees(hz, &early) ? hz : 0;
}

/* ---- the answer ---- */

uint64_t tsc_hz_from(enum tsc_source source)
{
    switch (source) {
    case TSC_CPUID:
        return hz_of_cpuid();
    case TSC_HYPERVISOR:
        return hz_of_hypervisor();
    case TSC_TIME_PAGE:
        return hz_of_time_page();
    case TSC_PERF:
        return hz_of_perf();
    case TSC_CALIBRATED:
        return calibrate();
    case TSC_UNKNOWN:
        break;
    }
    return 0;
}

#define SOURCE_SHIFT 56 /* Hz below, the source above: one word, so that both are of one answer */

static _Atomic uint64_t answer;

static uint64_t find_answer(void)
{
    uint64_t found = atomic_load_explicit(&answer, memory_order_relaxed); /* a word that stands for itself */
    if (found)
        return found;
    for (uint64_t source = TSC_CPUID; source <= TSC_CALIBRATED; source++) {
        uint64_t hz = tsc_hz_from((enum tsc_source)source);
        if (!hz)
            continue;
        /* Two threads may have measured; what the first one put here is everybody's. */
        uint64_t nothing = 0, mine = hz | source << SOURCE_SHIFT;
        return atomic_compare_exchange_strong(&answer, &nothing, mine) ? mine : nothing;
    }
    return 0;
}

uint64_t tsc_hz(void)
{
    return find_answer() & ((UINT64_C(1) << SOURCE_SHIFT) - 1);
}

enum tsc_source tsc_hz_source(void)
{
    return (enum tsc_source)(atomic_load_explicit(&answer, memory_order_relaxed) >> SOURCE_SHIFT);
}
