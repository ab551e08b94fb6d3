/*
 * What `python bench hypercall --backend kvm` compares with: an exit to user space and back, nothing else.
 *
 *     bare_kvm CALLS [real]
 *
 * A virtual machine executes `out %eax, (%dx)` to a hypercall's port in a loop. This program calls KVM_RUN in
 * a loop. It prints "exit CYCLES": cycles of the time stamp counter for CALLS exits, after as many exits that
 * are not counted.
 *
 * The virtual machine is in the state in which the hvt ABI starts a guest: 64-bit mode with paging. With
 * `real` it stays in real mode, which is the minimum that runs. Before and after each exit of a guest in
 * 64-bit mode, KVM looks up the guest's mode. On AMD's processors this takes 160 instructions, for any
 * monitor.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tender_abi.h"

#define MEM_BYTES  0x200000
#define CODE_GPA   0x100000
#define PAGES_2MIB 0x83 /* present, writable, 2 MiB: Intel SDM volume 3, 4.5 */
#define TABLE      0x03

static int checked(int answer, const char *what)
{
    if (answer < 0) {
        perror(what);
        exit(1);
    }
    return answer;
}

static uint64_t cycles(void)
{
    uint32_t low, high;
    __asm__ volatile("lfence\n\trdtsc\n\tlfence" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}

#define PORT (HVT_PORT_BASE + HVT_HYPERCALL_WALLTIME)

/* mov $port, %edx; 1: out %eax, (%dx); jmp 1b. First as 64-bit code, then as 16-bit code with mov to %dx. */
static const uint8_t long_code[] = {0xba, PORT & 255, PORT >> 8, 0, 0, 0xef, 0xeb, 0xfd};
static const uint8_t real_code[] = {0xba, PORT & 255, PORT >> 8, 0x66, 0xef, 0xeb, 0xfc};

static void set_cpuid(int kvm, int vcpu)
{
    static union {
        struct kvm_cpuid2 head;
        uint8_t bytes[sizeof(struct kvm_cpuid2) + 256 * sizeof(struct kvm_cpuid_entry2)];
    } cpuid;
    cpuid.head.nent = 256;
    checked(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid.head), "GET_SUPPORTED_CPUID");
    checked(ioctl(vcpu, KVM_SET_CPUID2, &cpuid.head), "SET_CPUID2");
}

static void set_long_mode(uint8_t *memory, struct kvm_sregs *s)
{
    const uint64_t pml4 = HVT_PDPT_GPA | TABLE, pdpt = HVT_PD_GPA | TABLE, pd = PAGES_2MIB;
    memcpy(memory + HVT_PML4_GPA, &pml4, sizeof pml4);
    memcpy(memory + HVT_PDPT_GPA, &pdpt, sizeof pdpt);
    memcpy(memory + HVT_PD_GPA, &pd, sizeof pd);
    s->cs = (struct kvm_segment){
        .limit = 0xffffffff, .selector = HVT_SELECTOR_CS, .type = 9, .present = 1, .s = 1, .l = 1, .g = 1};
    s->ds = s->es = s->fs = s->gs = s->ss = (struct kvm_segment){
        .limit = 0xffffffff, .selector = HVT_SELECTOR_DS, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
    s->tr = (struct kvm_segment){.type = 11, .present = 1};
    s->ldt = (struct kvm_segment){.unusable = 1};
    s->cr0 = HVT_CR0;
    s->cr3 = HVT_PML4_GPA;
    s->cr4 = HVT_CR4;
    s->efer = HVT_EFER;
}

static struct kvm_run *make_vm(int *vcpu, int is_long)
{
    uint8_t *memory = mmap(NULL, MEM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        checked(-1, "mmap");
    memcpy(memory + CODE_GPA, long_code, sizeof long_code);
    memcpy(memory, real_code, sizeof real_code);
    int kvm = checked(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
    int vm = checked(ioctl(kvm, KVM_CREATE_VM, 0), "CREATE_VM");
    struct kvm_userspace_memory_region region = {.memory_size = MEM_BYTES,
                                                 .userspace_addr = (uintptr_t)memory};
    checked(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "SET_USER_MEMORY_REGION");
    *vcpu = checked(ioctl(vm, KVM_CREATE_VCPU, 0), "CREATE_VCPU");
    set_cpuid(kvm, *vcpu);
    struct kvm_sregs sregs;
    checked(ioctl(*vcpu, KVM_GET_SREGS, &sregs), "GET_SREGS");
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    if (is_long)
        set_long_mode(memory, &sregs);
    checked(ioctl(*vcpu, KVM_SET_SREGS, &sregs), "SET_SREGS");
    struct kvm_regs regs = {.rip = is_long ? CODE_GPA : 0, .rflags = HVT_RFLAGS};
    checked(ioctl(*vcpu, KVM_SET_REGS, &regs), "SET_REGS");
    size_t run_bytes = (size_t)checked(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "GET_VCPU_MMAP_SIZE");
    struct kvm_run *run = mmap(NULL, run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *vcpu, 0);
    if (run == MAP_FAILED)
        checked(-1, "mmap of kvm_run");
    return run;
}

int main(int argc, char **argv)
{
    int vcpu;
    const int is_real = argc == 3 && strcmp(argv[2], "real") == 0;
    uint64_t calls = argc == 2 + is_real ? strtoull(argv[1], NULL, 10) : 0, start = 0;
    if (!calls) {
        fputs("usage: bare_kvm CALLS [real]\n", stderr);
        return 2;
    }
    const struct kvm_run *run = make_vm(&vcpu, !is_real);
    for (uint64_t i = 0; i < 2 * calls; i++) {
        if (i == calls)
            start = cycles();
        checked(ioctl(vcpu, KVM_RUN, 0), "RUN");
        if (run->exit_reason != KVM_EXIT_IO) {
            fprintf(stderr, "bare_kvm: exit %u is not a hypercall\n", run->exit_reason);
            return 1;
        }
    }
    printf("exit %llu\n", (unsigned long long)(cycles() - start));
    return 0;
}
