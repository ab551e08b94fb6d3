/*
 * The guest of `python bench hypercall`: the cost of one hypercall, by each way that it can take.
 *
 *     hypercall_guest.elf CALLS
 *
 * It prints one line for each kind and way: "net_read patched CYCLES", cycles of the time stamp counter for
 * CALLS calls in a row, after as many calls that are not counted. The work is that of one system call in a
 * plain process (bare_calls.c). The ways differ only in the call:
 *
 *   trap     `mov; nop; out`: not a call site that is patched, so a signal, or a VM exit with KVM
 *   patched  `mov $0x50N,%edx; out %eax,(%dx)`: the sandbox makes it a jump; a VM exit with KVM
 *   gate     a call of the gate page; left out if there is none
 */
#include <tender/guest.h>

TENDER_MANIFEST(2, TENDER_NET("service"), TENDER_BLOCK("storage"));

#define FRAME_BYTES 1514
#define BLOCK_BYTES 512

static uint8_t buffer[FRAME_BYTES] __attribute__((aligned(64)));
static union {
    struct hvt_walltime walltime;
    struct hvt_net_read net_read;
    struct hvt_block_read block_read;
} call __attribute__((aligned(64)));
static uint64_t net_handle, block_handle;

static uint64_t cycles(void)
{
    uint32_t low, high;
    __asm__ volatile("lfence\n\trdtsc\n\tlfence" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}

/* The fields that the answer changes are written again before each call, as every caller must do. */
static inline void fill(unsigned number)
{
    if (number == HVT_HYPERCALL_NET_READ) {
        call.net_read.handle = net_handle;
        call.net_read.data = (gpa_t)(uintptr_t)buffer;
        call.net_read.len = FRAME_BYTES;
    } else if (number == HVT_HYPERCALL_BLOCK_READ) {
        call.block_read.handle = block_handle;
        call.block_read.offset = 0;
        call.block_read.data = (gpa_t)(uintptr_t)buffer;
        call.block_read.len = BLOCK_BYTES;
    }
}

#define BY_TRAP(number)                                                                                      \
    __asm__ volatile("mov %[port], %%edx\n\tnop\n\tout %%eax, (%%dx)"                                        \
                     :                                                                                       \
                     : "a"((uint32_t)(uintptr_t)&call), [port] "i"(HVT_PORT_BASE + (number))                 \
                     : "edx", "memory")
#define BY_SITE(number)                                                                                      \
    __asm__ volatile("mov %[port], %%edx\n\tout %%eax, (%%dx)"                                               \
                     :                                                                                       \
                     : "a"((uint32_t)(uintptr_t)&call), [port] "i"(HVT_PORT_BASE + (number))                 \
                     : "edx", "memory")
#define BY_GATE(number)                                                                                      \
    ((void (*)(uint32_t))(uintptr_t)(gate + (number) * TENDER_GATE_SLOT_BYTES))((uint32_t)(uintptr_t)&call)

#define MEASURE(kind, way, number, request)                                                                  \
    do {                                                                                                     \
        uint64_t start = 0;                                                                                  \
        for (uint64_t i = 0; i < 2 * calls; i++) {                                                           \
            if (i == calls)                                                                                  \
                start = cycles();                                                                            \
            fill(number);                                                                                    \
            request(number);                                                                                 \
        }                                                                                                    \
        printf("%s %s %lu\n", kind, way, cycles() - start);                                                  \
    } while (0)

#define MEASURE_KIND(kind, number)                                                                           \
    do {                                                                                                     \
        MEASURE(kind, "trap", number, BY_TRAP);                                                              \
        MEASURE(kind, "patched", number, BY_SITE);                                                           \
        if (gate)                                                                                            \
            MEASURE(kind, "gate", number, BY_GATE);                                                          \
    } while (0)

int main(int argc, char **argv)
{
    const struct tender_extension *block = (const struct tender_extension *)TENDER_EXTENSION_GPA;
    const gpa_t gate = block->magic == TENDER_EXTENSION_MAGIC ? block->gate : 0;
    struct net_device net;
    struct block_device disk;
    uint64_t calls;
    if (argc != 1 || !number_parse(argv[0], &calls) || net_open("service", &net) != GUEST_OK ||
        block_open("storage", &disk) != GUEST_OK)
        panic("hypercall_guest CALLS");
    net_handle = net.handle;
    block_handle = disk.handle;
    MEASURE_KIND("walltime", HVT_HYPERCALL_WALLTIME);
    MEASURE_KIND("net_read", HVT_HYPERCALL_NET_READ);
    MEASURE_KIND("block_read", HVT_HYPERCALL_BLOCK_READ);
    return 0;
}
