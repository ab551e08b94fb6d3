/*
 * SSE and x87 work at the first instruction, and no hypercall changes their state. Status 0 and
 * "fpu: OK".
 */
#include <tender/guest.h>

TENDER_MANIFEST(0);

struct vectors {
    uint8_t xmm[16][16];
} __attribute__((aligned(16)));

#define FOR_EACH_XMM(OP)                                                                                     \
    OP(0) OP(1) OP(2) OP(3) OP(4) OP(5) OP(6) OP(7) OP(8) OP(9) OP(10) OP(11) OP(12) OP(13) OP(14) OP(15)
#define LOAD(n)    "movdqa 16*" #n "(%[from]), %%xmm" #n "\n\t"
#define STORE(n)   "movdqa %%xmm" #n ", 16*" #n "(%[to])\n\t"
#define CLOBBER(n) , "xmm" #n

/* Loads all 16 registers, makes one `out`, stores all. The compiler generates no code in between. */
static void vectors_over_poll(const struct vectors *from, struct vectors *to, struct hvt_poll *call)
{
    __asm__ volatile(FOR_EACH_XMM(LOAD) "mov %[port], %%edx\n\tout %%eax, (%%dx)\n\t" FOR_EACH_XMM(STORE)
                     :
                     : "a"((uint32_t)(uintptr_t)call), [port] "i"(HVT_PORT_BASE + HVT_HYPERCALL_POLL),
                       [from] "r"(from), [to] "r"(to)
                     : "edx", "memory" FOR_EACH_XMM(CLOBBER));
}

static uint32_t mxcsr_read(void)
{
    uint32_t value;
    __asm__ volatile("stmxcsr %0" : "=m"(value));
    return value;
}

static void mxcsr_write(uint32_t value)
{
    __asm__ volatile("ldmxcsr %0" : : "m"(value));
}

static uint16_t fcw_read(void)
{
    uint16_t value;
    __asm__ volatile("fnstcw %0" : "=m"(value));
    return value;
}

static bool arithmetic_is_right(void)
{
    volatile double x = 1.5, y = 2.25;
    volatile long double wide = 1.0L / 3.0L;
    poll_wait(0, NULL);
    return x * y == 3.375 && wide * 3.0L == 1.0L && (int)(x * 1000000.0) == 1500000;
}

static const char *failure(void)
{
    static struct vectors before, after;
    if (mxcsr_read() != 0x1f80) {
        return "MXCSR is not 0x1f80 at the start";
    }
    if ((fcw_read() & 0x3f) != 0x3f) {
        return "x87 exceptions are not masked at the start";
    }
    mxcsr_write(0x7f80); /* round towards zero */
    for (unsigned round = 0; round < 100; round++) {
        for (unsigned i = 0; i < sizeof(before); i++) {
            ((uint8_t *)&before)[i] = (uint8_t)(i * 37 + round);
        }
        struct hvt_poll call = {.timeout_nsecs = round % 10 ? 0 : 1000000};
        vectors_over_poll(&before, &after, &call);
        if (memcmp(&before, &after, sizeof(before)) != 0) {
            return "an XMM register changed over a hypercall";
        }
    }
    if (mxcsr_read() != 0x7f80) {
        return "MXCSR changed over a hypercall";
    }
    mxcsr_write(0x1f80);
    return arithmetic_is_right() ? NULL : "floating-point arithmetic is wrong";
}

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    const char *what = failure();
    printf("fpu: %s\n", what ? what : "OK");
    return what ? 1 : 0;
}
