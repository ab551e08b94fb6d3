/*
 * What the counted mode compares the library with: the KVM calls that one boot needs, in a loop of plain C.
 *
 * It gets what Tender's Image prepares once: the template memfd and the boot info. For each boot it does only
 * what every monitor must do, in the order of Tender: map the memory, open KVM, make the VM, its memory slot
 * and its vCPU, write the registers, run to the first exit, close. It has no ELF, no devices, no run loop.
 * Whatever Tender's library costs in addition is Tender's own work.
 *
 *     minimal_kvm BOOTS MEM_BYTES ENTRY TEMPLATE_FD TEMPLATE_BYTES BOOT_INFO_FD BOOT_INFO_BYTES
 *
 * It prints one line of decimal numbers per boot: for each point of `enum point` the CLOCK_MONOTONIC
 * nanoseconds since the boot began, then the thread's CPU nanoseconds of the whole boot, including the close.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "tender_abi.h"

enum point {
    MAPPED,
    CREATE_VM,
    MEMORY_REGION,
    CREATE_VCPU,
    RUN_PAGE,
    CPUID,
    REGISTERS,
    READY,
    FIRST_EXIT,
    CLOSED,
    POINTS
};

struct guest {
    uint64_t mem_bytes, entry, template_bytes, boot_info_bytes;
    int template_fd;
    const void *boot_info;
};

static uint64_t now_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int checked(int answer, const char *what)
{
    if (answer < 0) {
        perror(what);
        exit(1);
    }
    return answer;
}

static uint8_t *map_memory(const struct guest *guest)
{
    uint8_t *hva = mmap(NULL, guest->mem_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (hva == MAP_FAILED ||
        mmap(hva, guest->template_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE,
             guest->template_fd, 0) == MAP_FAILED)
        checked(-1, "mmap of guest memory");
    /* As in Tender: no huge page for the guest's first push. Otherwise this program would be slower. */
    madvise(hva + guest->mem_bytes - HVT_MEM_GRANULE, HVT_MEM_GRANULE, MADV_NOHUGEPAGE);
    memcpy(hva + HVT_BOOT_INFO_GPA, guest->boot_info, guest->boot_info_bytes);
    return hva;
}

static void set_cpuid(int kvm, int vcpu)
{
    union {
        struct kvm_cpuid2 head;
        uint8_t bytes[sizeof(struct kvm_cpuid2) + 256 * sizeof(struct kvm_cpuid_entry2)];
    } cpuid;
    cpuid.head.nent = 256;
    checked(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid.head), "GET_SUPPORTED_CPUID");
    checked(ioctl(vcpu, KVM_SET_CPUID2, &cpuid.head), "SET_CPUID2");
}

static void set_registers(int vcpu, const struct guest *guest)
{
    struct kvm_sregs s;
    checked(ioctl(vcpu, KVM_GET_SREGS, &s), "GET_SREGS");
    s.cs = (struct kvm_segment){
        .limit = 0xffffffff, .selector = HVT_SELECTOR_CS, .type = 9, .present = 1, .s = 1, .l = 1, .g = 1};
    s.ds = s.es = s.fs = s.gs = s.ss = (struct kvm_segment){
        .limit = 0xffffffff, .selector = HVT_SELECTOR_DS, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
    s.tr = (struct kvm_segment){.type = 11, .present = 1};
    s.ldt = (struct kvm_segment){.unusable = 1};
    s.gdt = (struct kvm_dtable){.base = HVT_GDT_GPA, .limit = HVT_GDT_LIMIT};
    s.idt = (struct kvm_dtable){.base = 0};
    s.cr0 = HVT_CR0;
    s.cr3 = HVT_PML4_GPA;
    s.cr4 = HVT_CR4;
    s.efer = HVT_EFER;
    checked(ioctl(vcpu, KVM_SET_SREGS, &s), "SET_SREGS");
    struct kvm_regs regs = {
        .rip = guest->entry,
        .rsp = guest->mem_bytes - HVT_STACK_OFFSET,
        .rdi = HVT_BOOT_INFO_GPA,
        .rflags = HVT_RFLAGS,
    };
    checked(ioctl(vcpu, KVM_SET_REGS, &regs), "SET_REGS");
}

static void set_signal_mask(int vcpu)
{
    struct {
        struct kvm_signal_mask head;
        uint8_t bits[8];
    } mask = {.head.len = 8};
    checked(ioctl(vcpu, KVM_SET_SIGNAL_MASK, &mask), "SET_SIGNAL_MASK");
}

static void boot(const struct guest *guest, uint64_t stamps[POINTS])
{
    uint8_t *hva = map_memory(guest);
    stamps[MAPPED] = now_ns(CLOCK_MONOTONIC);
    int kvm = checked(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
    if (ioctl(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
        exit(1);
    int vm = checked(ioctl(kvm, KVM_CREATE_VM, 0), "CREATE_VM");
    stamps[CREATE_VM] = now_ns(CLOCK_MONOTONIC);
    struct kvm_userspace_memory_region region = {
        .memory_size = guest->mem_bytes,
        .userspace_addr = (uintptr_t)hva,
    };
    checked(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "SET_USER_MEMORY_REGION");
    stamps[MEMORY_REGION] = now_ns(CLOCK_MONOTONIC);
    int vcpu = checked(ioctl(vm, KVM_CREATE_VCPU, 0), "CREATE_VCPU");
    stamps[CREATE_VCPU] = now_ns(CLOCK_MONOTONIC);
    size_t run_bytes = (size_t)checked(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "GET_VCPU_MMAP_SIZE");
    struct kvm_run *run = mmap(NULL, run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (run == MAP_FAILED)
        checked(-1, "mmap of kvm_run");
    stamps[RUN_PAGE] = now_ns(CLOCK_MONOTONIC);
    set_cpuid(kvm, vcpu);
    stamps[CPUID] = now_ns(CLOCK_MONOTONIC);
    set_registers(vcpu, guest);
    stamps[REGISTERS] = now_ns(CLOCK_MONOTONIC);
    checked(ioctl(vcpu, KVM_GET_TSC_KHZ, 0), "GET_TSC_KHZ");
    set_signal_mask(vcpu);
    stamps[READY] = now_ns(CLOCK_MONOTONIC);
    checked(ioctl(vcpu, KVM_RUN, 0), "RUN");
    stamps[FIRST_EXIT] = now_ns(CLOCK_MONOTONIC);
    if (run->exit_reason != KVM_EXIT_IO) {
        fprintf(stderr, "minimal_kvm: first exit is %u, not a hypercall\n", run->exit_reason);
        exit(1);
    }
    munmap(run, run_bytes);
    close(vcpu);
    close(vm);
    close(kvm);
    munmap(hva, guest->mem_bytes);
    stamps[CLOSED] = now_ns(CLOCK_MONOTONIC);
}

int main(int argc, char **argv)
{
    if (argc != 8) {
        fprintf(stderr,
                "usage: minimal_kvm BOOTS MEM_BYTES ENTRY TEMPLATE_FD TEMPLATE_BYTES INFO_FD INFO_BYTES\n");
        return 2;
    }
    struct guest guest = {
        .mem_bytes = strtoull(argv[2], NULL, 0),
        .entry = strtoull(argv[3], NULL, 0),
        .template_fd = atoi(argv[4]),
        .template_bytes = strtoull(argv[5], NULL, 0),
        .boot_info_bytes = strtoull(argv[7], NULL, 0),
    };
    void *info = malloc(guest.boot_info_bytes);
    if (!info || pread(atoi(argv[6]), info, guest.boot_info_bytes, 0) != (ssize_t)guest.boot_info_bytes)
        checked(-1, "boot info");
    guest.boot_info = info;
    for (long boots = atol(argv[1]); boots > 0; boots--) {
        uint64_t stamps[POINTS];
        uint64_t cpu = now_ns(CLOCK_THREAD_CPUTIME_ID), start = now_ns(CLOCK_MONOTONIC);
        boot(&guest, stamps);
        cpu = now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
        for (int i = 0; i < POINTS; i++)
            printf("%llu ", (unsigned long long)(stamps[i] - start));
        printf("%llu\n", (unsigned long long)cpu);
    }
    return 0;
}
