/*
 * Asks its processor: CPUID leaves and model-specific registers.
 *
 *     cpu [--cpuid=LEAF[.INDEX]] ...     "cpuid LEAF.INDEX EAX EBX ECX EDX", each 8 hexadecimal digits
 *     cpu --rdmsr=N                      "rdmsr N VALUE"
 *     cpu --wrmsr=N [--value=V]          "wrmsr N V", then reads it: "rdmsr N VALUE"
 *     cpu --kvm-call=N                   KVM's own hypercall N: "kvm call N ANSWER"
 *     cpu --tls                          writes FS base 1000 times, loads through FS each time: "tls OK"
 *
 * Numbers are those of number_parse(). Status 0. A register that is refused raises #GP: the guest's
 * dump and status 255.
 */
#include <tender/guest.h>

#include "gate.h"

TENDER_MANIFEST(0);

#define MSR_FS_BASE 0xc0000100

static uint64_t rdmsr(uint32_t msr)
{
    uint32_t low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
    return (uint64_t)high << 32 | low;
}

static void wrmsr(uint32_t msr, uint64_t value)
{
    __asm__ volatile("wrmsr" : : "c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "memory");
}

static void print_cpuid(const char *what)
{
    uint64_t leaf = 0, index = 0;
    char number[24] = {0};
    size_t i = 0;
    while (what[i] && what[i] != '.' && i < sizeof(number) - 1) {
        number[i] = what[i];
        i++;
    }
    number_parse(number, &leaf);
    if (what[i] == '.') {
        number_parse(what + i + 1, &index);
    }
    uint32_t eax = (uint32_t)leaf, ebx, ecx = (uint32_t)index, edx;
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    printf("cpuid 0x%x.%u %08x %08x %08x %08x\n", (uint32_t)leaf, (uint32_t)index, eax, ebx, ecx, edx);
}

/* KVM's hypercalls (virt/kvm/x86/hypercalls.rst): `vmmcall` on AMD's processors, `vmcall` on Intel's. */
static int64_t kvm_call(uint64_t number)
{
    uint32_t eax = 0, ebx, ecx, edx;
    int64_t answer = (int64_t)number;
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "=c"(ecx), "=d"(edx));
    if (ecx == 0x6c65746e) { /* "ntel" */
        __asm__ volatile("xor %%esi, %%esi; vmcall"
                         : "+a"(answer)
                         : "b"(0), "c"(0), "d"(0)
                         : "rsi", "memory");
    } else {
        __asm__ volatile("xor %%esi, %%esi; vmmcall"
                         : "+a"(answer)
                         : "b"(0), "c"(0), "d"(0)
                         : "rsi", "memory");
    }
    return answer;
}

static bool tls_holds(void)
{
    static uint64_t blocks[2][2];
    for (uint64_t i = 0; i < 1000; i++) {
        uint64_t seen;
        blocks[i % 2][1] = i * 7 + 1;
        wrmsr(MSR_FS_BASE, gpa_of(blocks[i % 2]));
        __asm__ volatile("mov %%fs:8, %0" : "=r"(seen) : : "memory");
        if (seen != i * 7 + 1 || rdmsr(MSR_FS_BASE) != gpa_of(blocks[i % 2])) {
            return false;
        }
    }
    return true;
}

int main(int argc, char **argv)
{
    uint64_t msr, value = 0;
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "--cpuid=", 8) == 0) {
            print_cpuid(argv[i] + 8);
        }
    }
    if (number_parse(args_value(argc, argv, "--rdmsr="), &msr)) {
        printf("rdmsr 0x%x 0x%lx\n", (uint32_t)msr, rdmsr((uint32_t)msr));
    }
    if (number_parse(args_value(argc, argv, "--wrmsr="), &msr)) {
        number_parse(args_value(argc, argv, "--value="), &value);
        wrmsr((uint32_t)msr, value);
        printf("wrmsr 0x%x 0x%lx\n", (uint32_t)msr, value);
        printf("rdmsr 0x%x 0x%lx\n", (uint32_t)msr, rdmsr((uint32_t)msr));
    }
    if (number_parse(args_value(argc, argv, "--kvm-call="), &value)) {
        printf("kvm call %lu %ld\n", value, kvm_call(value));
    }
    if (args_has(argc, argv, "--tls")) {
        printf("tls %s\n", tls_holds() ? "OK" : "FAILED");
    }
    return 0;
}
