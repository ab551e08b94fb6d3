/*
 * Looks for what an earlier guest may have left. Then leaves marks wherever a guest can: memory,
 * data, vector and x87 registers. With the argument "ring0" also debug registers, CR2, and the low
 * megabyte, which its page tables protect but which ring 0 can write nevertheless. Prints "clean",
 * or what was found, with status 1.
 */
#include <tender/guest.h>

TENDER_MANIFEST(0);

#define MARK      0xa5a5a5a5a5a5a5a5ULL
#define LOW_FROM  ((uint64_t *)0x20000)
#define LOW_WORDS 512
#define CR0_WP    0x10000ULL

static uint64_t initialised = 42;
static uint64_t zeroed[4096];

struct vectors {
    uint64_t xmm[8][2];
} __attribute__((aligned(16)));

static struct vectors read_vectors(void)
{
    struct vectors v;
    __asm__ volatile("movdqa %%xmm8, %0" : "=m"(v.xmm[0]));
    __asm__ volatile("movdqa %%xmm9, %0" : "=m"(v.xmm[1]));
    __asm__ volatile("movdqa %%xmm10, %0" : "=m"(v.xmm[2]));
    __asm__ volatile("movdqa %%xmm11, %0" : "=m"(v.xmm[3]));
    __asm__ volatile("movdqa %%xmm12, %0" : "=m"(v.xmm[4]));
    __asm__ volatile("movdqa %%xmm13, %0" : "=m"(v.xmm[5]));
    __asm__ volatile("movdqa %%xmm14, %0" : "=m"(v.xmm[6]));
    __asm__ volatile("movdqa %%xmm15, %0" : "=m"(v.xmm[7]));
    return v;
}

static bool all_are(const uint64_t *words, size_t count, uint64_t value)
{
    for (size_t i = 0; i < count; i++) {
        if (words[i] != value) {
            return false;
        }
    }
    return true;
}

static uint64_t debug_registers(void)
{
    uint64_t d0, d1, d2, d3;
    __asm__ volatile("mov %%dr0, %0\n\tmov %%dr1, %1\n\tmov %%dr2, %2\n\tmov %%dr3, %3"
                     : "=r"(d0), "=r"(d1), "=r"(d2), "=r"(d3));
    return d0 | d1 | d2 | d3;
}

static uint64_t cr2(void)
{
    uint64_t value;
    __asm__ volatile("mov %%cr2, %0" : "=r"(value));
    return value;
}

static const char *found(bool ring0, const uint64_t *heap, size_t heap_words)
{
    const struct vectors vectors = read_vectors();
    uint32_t mxcsr;
    uint16_t fcw;
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    __asm__ volatile("fnstcw %0" : "=m"(fcw));
    if (initialised != 42 || !all_are(zeroed, sizeof(zeroed) / sizeof(*zeroed), 0)) {
        return "data";
    }
    if (!all_are(heap, heap_words, 0)) {
        return "memory";
    }
    if (!all_are(&vectors.xmm[0][0], 16, 0) || mxcsr != 0x1f80 || (fcw & 0x3f) != 0x3f) {
        return "vectors";
    }
    if (!all_are(LOW_FROM, LOW_WORDS, 0)) {
        return "low memory";
    }
    if (ring0 && (debug_registers() != 0 || cr2() != 0)) {
        return "debug registers or CR2";
    }
    return NULL;
}

static void leave_ring0_marks(void)
{
    uint64_t cr0;
    __asm__ volatile("mov %0, %%dr0\n\tmov %0, %%dr1\n\tmov %0, %%dr2\n\tmov %0, %%dr3\n\tmov %0, %%cr2"
                     :
                     : "r"(MARK & 0x7fffffffffffULL));
    __asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
    __asm__ volatile("mov %0, %%cr0" : : "r"(cr0 & ~CR0_WP) : "memory");
    for (size_t i = 0; i < LOW_WORDS; i++) {
        LOW_FROM[i] = MARK;
    }
}

int main(int argc, char **argv)
{
    const bool ring0 = args_has(argc, argv, "ring0");
    const size_t heap_bytes = 1 << 20;
    uint64_t *heap = guest_alloc(heap_bytes);
    const char *what = heap ? found(ring0, heap, heap_bytes / sizeof(*heap)) : "no memory";
    printf("%s\n", what ? what : "clean");
    if (what) {
        return 1;
    }
    initialised = MARK;
    memset(zeroed, 0xa5, sizeof(zeroed));
    memset(heap, 0xa5, heap_bytes);
    const uint32_t mxcsr = 0x7f80;
    const uint16_t fcw = 0x0f7f;
    __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
    __asm__ volatile("fldcw %0" : : "m"(fcw));
    __asm__ volatile(
        "movq %0, %%xmm8\n\tmovdqa %%xmm8, %%xmm9\n\tmovdqa %%xmm8, %%xmm10\n\tmovdqa %%xmm8, %%xmm11\n\t"
        "movdqa %%xmm8, %%xmm12\n\tmovdqa %%xmm8, %%xmm13\n\tmovdqa %%xmm8, %%xmm14\n\tmovdqa %%xmm8, %%xmm15"
        :
        : "r"(MARK)
        : "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    if (ring0) {
        leave_ring0_marks();
    }
    return 0;
}
