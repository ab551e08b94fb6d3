/*
 * The yardstick of `tender bench hypercall --backend kvm`: an exit to user space and back, and nothing else.
 *
 *     bare_kvm CALLS
 *
 * A virtual machine of one page, in real mode, executes `out %eax, (%dx)` to a hypercall's port in a loop;
 * here is KVM_RUN in a loop. Prints "exit CYCLES": time stamp counter over CALLS exits, after as many not
 * counted.
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

#define PAGE_BYTES 4096

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

/* mov $port, %dx; 1: out %eax, (%dx); jmp 1b, as 16-bit code */
static const uint8_t guest_code[] = {
    0xba, (HVT_PORT_BASE + HVT_HYPERCALL_WALLTIME) & 255, HVT_PORT_BASE >> 8, 0x66, 0xef, 0xeb, 0xfc};

static struct kvm_run *make_vm(int *vcpu)
{
    uint8_t *page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        checked(-1, "mmap");
    memcpy(page, guest_code, sizeof guest_code);
    int kvm = checked(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
    int vm = checked(ioctl(kvm, KVM_CREATE_VM, 0), "CREATE_VM");
    struct kvm_userspace_memory_region region = {.memory_size = PAGE_BYTES,
                                                 .userspace_addr = (uintptr_t)page};
    checked(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "SET_USER_MEMORY_REGION");
    *vcpu = checked(ioctl(vm, KVM_CREATE_VCPU, 0), "CREATE_VCPU");
    struct kvm_sregs sregs;
    checked(ioctl(*vcpu, KVM_GET_SREGS, &sregs), "GET_SREGS");
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    checked(ioctl(*vcpu, KVM_SET_SREGS, &sregs), "SET_SREGS");
    struct kvm_regs regs = {.rip = 0, .rflags = HVT_RFLAGS};
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
    uint64_t calls = argc == 2 ? strtoull(argv[1], NULL, 10) : 0, start = 0;
    if (!calls) {
        fputs("usage: bare_kvm CALLS\n", stderr);
        return 2;
    }
    const struct kvm_run *run = make_vm(&vcpu);
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
