/*
 * The guest's registers over very many hypercalls: general, x87, SSE with MXCSR, AVX and AVX-512
 * where the host has enabled them, and a thread pointer (FS base, written with WRMSR) with the
 * memory that it points to. This guest is for the sandbox: on KVM, the guest would have to enable
 * AVX first.
 *
 *     sandbox_state [--calls=1000000] [--trapped-every=50]
 *
 * Calls go alternately through a patched call site and the gate page, and at intervals through an
 * `out` without the form of a call site, which the host receives as a signal. A WRMSR, which is
 * also a signal, comes before it. All registers are loaded before each call and compared after it.
 * Status 0 and "state: OK LEVEL calls=N trapped=M", or "state: FAILED ..." and 1.
 */
#include <tender/guest.h>

#include "gate.h"

TENDER_MANIFEST(0);

#define MSR_FS_BASE 0xc0000100

enum level { SSE, AVX, AVX512 };

/* The assembly code below uses these offsets. */
struct state {
    uint8_t fx[512];         /* 0: FXSAVE: x87, MXCSR, XMM */
    uint8_t vectors[32][64]; /* 512 */
    uint64_t masks[8];       /* 2560: k0 to k7 */
    uint64_t gpr[13];        /* 2624: RBX RCX RSI RDI RBP R8 to R15 */
    uint64_t fs_word;        /* 2728 */
} __attribute__((aligned(64)));

_Static_assert(offsetof(struct state, gpr) == 2624 && offsetof(struct state, fs_word) == 2728,
               "as in assembler");

static struct state loaded __attribute__((used)), found __attribute__((used)), expected;
static uint32_t level __attribute__((used));
static uint64_t by_way __attribute__((used)); /* the address of a label below */
static uint64_t gate_slot __attribute__((used));
static uint32_t call_gpa __attribute__((used)), call_port __attribute__((used));
static uint32_t mxcsr_at_start __attribute__((used)) = 0x1f80;

/*
 * void state_roundtrip(void): loads all registers from `loaded`, makes the call, stores them in
 * `found`. Clobbers what a C function may. Leaves x87 and MXCSR as at the start.
 */
__asm__(".pushsection .text, \"ax\", @progbits\n"
        "state_roundtrip:\n\t"
        "push %rbx\n\tpush %rbp\n\tpush %r12\n\tpush %r13\n\tpush %r14\n\tpush %r15\n\tsub $8, %rsp\n\t"
        "fxrstor64 loaded(%rip)\n\t"
        "cmpl $1, level(%rip)\n\tjb 2f\n\tja 1f\n\t"
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n\t"
        "vmovups loaded+512+64*\\n(%rip), %ymm\\n\n\t"
        ".endr\n\t"
        "jmp 2f\n"
        "1:\n\t"
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n\t"
        "vmovups loaded+512+64*\\n(%rip), %zmm\\n\n\t"
        ".endr\n\t"
        ".irp n,0,1,2,3,4,5,6,7\n\t"
        "kmovw loaded+2560+8*\\n(%rip), %k\\n\n\t"
        ".endr\n"
        "2:\n\t"
        "mov loaded+2624(%rip), %rbx\n\tmov loaded+2632(%rip), %rcx\n\tmov loaded+2640(%rip), %rsi\n\t"
        "mov loaded+2648(%rip), %rdi\n\tmov loaded+2656(%rip), %rbp\n\tmov loaded+2664(%rip), %r8\n\t"
        "mov loaded+2672(%rip), %r9\n\tmov loaded+2680(%rip), %r10\n\tmov loaded+2688(%rip), %r11\n\t"
        "mov loaded+2696(%rip), %r12\n\tmov loaded+2704(%rip), %r13\n\tmov loaded+2712(%rip), %r14\n\t"
        "mov loaded+2720(%rip), %r15\n\t"
        "mov call_gpa(%rip), %eax\n\tmov call_port(%rip), %edx\n\t"
        "jmp *by_way(%rip)\n"
        "state_by_site:\n\t"
        "mov $0x501, %edx\n\tout %eax, (%dx)\n\t"
        "jmp state_back\n"
        "state_by_out:\n\t"
        "out %eax, (%dx)\n\t"
        "jmp state_back\n"
        "state_by_gate:\n\t" /* a function: the registers that it may change are restored */
        "mov %eax, %edi\n\tcall *gate_slot(%rip)\n\t"
        "mov loaded+2632(%rip), %rcx\n\tmov loaded+2640(%rip), %rsi\n\tmov loaded+2648(%rip), %rdi\n\t"
        "mov loaded+2664(%rip), %r8\n\tmov loaded+2672(%rip), %r9\n\tmov loaded+2680(%rip), %r10\n\t"
        "mov loaded+2688(%rip), %r11\n"
        "state_back:\n\t"
        "mov %rbx, found+2624(%rip)\n\tmov %rcx, found+2632(%rip)\n\tmov %rsi, found+2640(%rip)\n\t"
        "mov %rdi, found+2648(%rip)\n\tmov %rbp, found+2656(%rip)\n\tmov %r8, found+2664(%rip)\n\t"
        "mov %r9, found+2672(%rip)\n\tmov %r10, found+2680(%rip)\n\tmov %r11, found+2688(%rip)\n\t"
        "mov %r12, found+2696(%rip)\n\tmov %r13, found+2704(%rip)\n\tmov %r14, found+2712(%rip)\n\t"
        "mov %r15, found+2720(%rip)\n\t"
        "mov %fs:8, %rax\n\tmov %rax, found+2728(%rip)\n\t"
        "fxsave64 found(%rip)\n\t"
        "cmpl $1, level(%rip)\n\tjb 4f\n\tja 3f\n\t"
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n\t"
        "vmovups %ymm\\n, found+512+64*\\n(%rip)\n\t"
        ".endr\n\t"
        "jmp 4f\n"
        "3:\n\t"
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n\t"
        "vmovups %zmm\\n, found+512+64*\\n(%rip)\n\t"
        ".endr\n\t"
        ".irp n,0,1,2,3,4,5,6,7\n\t"
        "kmovw %k\\n, found+2560+8*\\n(%rip)\n\t"
        ".endr\n"
        "4:\n\t"
        "fninit\n\tldmxcsr mxcsr_at_start(%rip)\n\t"
        "add $8, %rsp\n\tpop %r15\n\tpop %r14\n\tpop %r13\n\tpop %r12\n\tpop %rbp\n\tpop %rbx\n\t"
        "ret\n"
        ".popsection\n");
void state_roundtrip(void);
extern const uint8_t state_by_site[], state_by_gate[], state_by_out[], state_back[];

static const char *const level_names[] = {"SSE", "AVX", "AVX-512"};

static enum level level_of_host(void)
{
    uint32_t eax = 1, ebx, ecx = 0, edx, xcr0, high;
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    if (!(ecx & 1u << 27) || !(ecx & 1u << 28)) { /* OSXSAVE, AVX */
        return SSE;
    }
    __asm__ volatile("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
    eax = 7;
    ecx = 0;
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    if ((ebx & 1u << 16) && (xcr0 & 0xe6) == 0xe6) {
        return AVX512;
    }
    return (xcr0 & 6) == 6 ? AVX : SSE;
}

static void fs_base_write(const void *base)
{
    uint64_t value = gpa_of(base);
    __asm__ volatile("wrmsr"
                     :
                     : "c"(MSR_FS_BASE), "a"((uint32_t)value), "d"((uint32_t)(value >> 32))
                     : "memory");
}

static uint64_t tls[2][2] = {{0, 0x1111222233334444}, {0, 0x5555666677778888}};

/* Values that differ from register to register and from call to call. x87 and MXCSR differ from the
 * start, and are valid: all exceptions masked, other rounding modes. */
static void fill(uint64_t seed)
{
    uint8_t *bytes = (uint8_t *)&loaded;
    uint64_t x = seed * 0x9e3779b97f4a7c15 + 1;
    for (unsigned i = 0; i < sizeof(loaded); i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes[i] = (uint8_t)(x >> 32);
    }
    memset(loaded.fx, 0, 32);
    const uint16_t fcw = (uint16_t)(0x37f | (seed & 3) << 10), fsw = (uint16_t)((seed & 7) << 11);
    const uint32_t mxcsr = 0x1f80 | (uint32_t)(seed & 3) << 13 | (uint32_t)(seed & 0x3f);
    memcpy(loaded.fx, &fcw, 2);
    memcpy(loaded.fx + 2, &fsw, 2);
    loaded.fx[4] = 0xff; /* all eight registers are in use */
    memcpy(loaded.fx + 24, &mxcsr, 4);
    by_way = gpa_of(state_back);
    memset(&found, 0, sizeof(found));
    state_roundtrip();
    memcpy(&expected, &found, sizeof(found)); /* what comes back when nothing happens in between */
}

static bool is_as_expected(void)
{
    const uint64_t *a = (const uint64_t *)&expected, *b = (const uint64_t *)&found;
    uint64_t different = 0;
    for (unsigned i = 0; i < sizeof(struct state) / 8; i++) {
        different |= a[i] ^ b[i];
    }
    return different == 0;
}

static size_t first_difference(void)
{
    const uint8_t *a = (const uint8_t *)&expected, *b = (const uint8_t *)&found;
    size_t i = 0;
    while (i < sizeof(struct state) - 1 && a[i] == b[i]) {
        i++;
    }
    return i;
}

int main(int argc, char **argv)
{
    static struct hvt_walltime walltime_call;
    uint64_t calls = 1000000, trapped_every = 50, trapped = 0;
    number_parse(args_value(argc, argv, "--calls="), &calls);
    number_parse(args_value(argc, argv, "--trapped-every="), &trapped_every);
    level = level_of_host();
    call_gpa = (uint32_t)gpa_of(&walltime_call);
    call_port = HVT_PORT_BASE + HVT_HYPERCALL_WALLTIME;
    gate_slot = TENDER_GATE_GPA + HVT_HYPERCALL_WALLTIME * TENDER_GATE_SLOT_BYTES;
    fs_base_write(tls[0]);
    printf("state: begins\n");
    for (uint64_t i = 0; i < calls; i++) {
        bool trap = i % trapped_every == 0;
        if (trap) {
            fs_base_write(tls[trapped++ % 2]);
            fill(i);
        }
        by_way = gpa_of(trap ? state_by_out : i % 2 ? state_by_site : state_by_gate);
        walltime_call.nsecs = 0;
        state_roundtrip();
        if (!is_as_expected() || walltime_call.nsecs == 0) {
            printf("state: FAILED call %lu by %s: byte %lu is not as it was\n", i,
                   trap    ? "out"
                   : i % 2 ? "site"
                           : "gate",
                   first_difference());
            return 1;
        }
    }
    printf("state: OK %s calls=%lu trapped=%lu\n", level_names[level], calls, trapped);
    return 0;
}
