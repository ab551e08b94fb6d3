#define _GNU_SOURCE
#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "guest_cpu.h"
#include "run_kvm.h"

#define CPUID_ENTRIES     256 /* KVM_MAX_CPUID_ENTRIES, which no header has */
#define CPUID_ENTRIES_FEW 100 /* processors have some 60: KVM clears, and we touch, less */

/* Intel SDM volume 3, 3.4.5.1 and 3.5 */
#define CODE_TYPE 9
#define DATA_TYPE 3
#define TSS_TYPE  11

static __attribute__((format(printf, 5, 6))) int failed(struct machine *machine, struct machine_error *error,
                                                        int no_kvm, int os_error, const char *format, ...)
{
    va_list arguments;
    error->os_error = os_error;
    error->no_kvm = no_kvm;
    va_start(arguments, format);
    (void)vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    machine_close(machine);
    return -1;
}

static int ioctl_failed(struct machine *machine, struct machine_error *error, const char *name)
{
    int os_error = errno;
    return failed(machine, error, 1, os_error, "KVM: ioctl (%s) failed: %s", name, strerror(os_error));
}

int machine_open(struct machine *machine, struct machine_error *error)
{
    *machine = (struct machine){.kvm_fd = -1, .vm_fd = -1, .vcpu_fd = -1};
    machine->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (machine->kvm_fd < 0)
        return failed(machine, error, 1, errno, "Could not open: /dev/kvm: %s", strerror(errno));
    int version = ioctl(machine->kvm_fd, KVM_GET_API_VERSION, 0);
    if (version < 0)
        return failed(machine, error, 1, errno, "/dev/kvm: not KVM: %s", strerror(errno));
    if (version != KVM_API_VERSION)
        return failed(machine, error, 1, 0, "KVM: API version is %d, tender requires version %d", version,
                      KVM_API_VERSION);
    machine->vm_fd = ioctl(machine->kvm_fd, KVM_CREATE_VM, 0);
    return machine->vm_fd < 0 ? ioctl_failed(machine, error, "CREATE_VM") : 0;
}

static int copy_supported_cpuid(const struct machine *machine, const char **name)
{
    static union {
        struct kvm_cpuid2 head;
        uint8_t room[sizeof(struct kvm_cpuid2) + CPUID_ENTRIES * sizeof(struct kvm_cpuid_entry2)];
    } cpuid;
    *name = "GET_SUPPORTED_CPUID";
    cpuid.head.nent = CPUID_ENTRIES_FEW;
    int refused = ioctl(machine->kvm_fd, KVM_GET_SUPPORTED_CPUID, &cpuid.head);
    if (refused < 0 && errno == E2BIG) {
        cpuid.head.nent = CPUID_ENTRIES;
        refused = ioctl(machine->kvm_fd, KVM_GET_SUPPORTED_CPUID, &cpuid.head);
    }
    if (refused < 0)
        return -1;
    guest_cpuid_filter(&cpuid.head);
    *name = "SET_CPUID2";
    return ioctl(machine->vcpu_fd, KVM_SET_CPUID2, &cpuid.head);
}

/* Without it KVM serves what CPUID does not show: a `vmcall` or `vmmcall` to wake a vCPU or to send an
 * interrupt. A capability of the vCPU. EINVAL: before Linux 5.10, and KVM's own choice stands. */
static int enforce_shown_features(const struct machine *machine, const char **name)
{
    const struct kvm_enable_cap enforce = {.cap = KVM_CAP_ENFORCE_PV_FEATURE_CPUID, .args = {1}};
    *name = "ENABLE_CAP (ENFORCE_PV_FEATURE_CPUID)";
    return ioctl(machine->vcpu_fd, KVM_ENABLE_CAP, &enforce) < 0 && errno != EINVAL ? -1 : 0;
}

static struct kvm_segment flat(uint16_t selector, uint8_t type, uint8_t is_long)
{
    return (struct kvm_segment){
        .limit = 0xffffffff,
        .selector = selector,
        .type = type,
        .present = 1,
        .db = !is_long,
        .s = 1,
        .l = is_long,
        .g = 1,
    };
}

/* Long mode with paging, flat segments, no IDT, no local APIC: section 7 of the hvt contract as values. */
static int set_registers(const struct machine *machine, uint64_t mem_bytes, gpa_t entry, const char **name)
{
    /* All of them, so nothing has to be asked for first. */
    const struct kvm_segment data = flat(HVT_SELECTOR_DS, DATA_TYPE, 0);
    struct kvm_sregs s = {
        .cs = flat(HVT_SELECTOR_CS, CODE_TYPE, 1),
        .ds = data,
        .es = data,
        .fs = data,
        .gs = data,
        .ss = data,
        .tr = {.type = TSS_TYPE, .present = 1},
        .ldt = {.unusable = 1},
        .gdt = {.base = HVT_GDT_GPA, .limit = HVT_GDT_LIMIT},
        .cr0 = HVT_CR0,
        .cr3 = HVT_PML4_GPA,
        .cr4 = HVT_CR4,
        .efer = HVT_EFER,
        .apic_base = 0, /* all of memory up to 4 GiB is memory */
    };
    *name = "SET_SREGS";
    if (ioctl(machine->vcpu_fd, KVM_SET_SREGS, &s) < 0)
        return -1;
    const struct kvm_regs regs = {
        .rip = entry,
        .rsp = mem_bytes - HVT_STACK_OFFSET,
        .rdi = HVT_BOOT_INFO_GPA,
        .rflags = HVT_RFLAGS,
    };
    *name = "SET_REGS";
    return ioctl(machine->vcpu_fd, KVM_SET_REGS, &regs);
}

static int make_vcpu(struct machine *machine, const struct vm *vm, gpa_t entry, const char **name)
{
    /* ENOTTY: before Linux 5.10, and KVM's own choice stands. Where it stands among the others: kvm.py. */
    *name = "X86_SET_MSR_FILTER";
    if (ioctl(machine->vm_fd, KVM_X86_SET_MSR_FILTER, guest_msr_filter()) < 0 && errno != ENOTTY)
        return -1;
    *name = "SET_USER_MEMORY_REGION";
    int refused = kvm_set_memory(vm, machine->vm_fd);
    if (refused < 0) {
        errno = -refused;
        return -1;
    }
    *name = "CREATE_VCPU";
    machine->vcpu_fd = ioctl(machine->vm_fd, KVM_CREATE_VCPU, 0);
    if (machine->vcpu_fd < 0)
        return -1;
    *name = "GET_VCPU_MMAP_SIZE";
    int run_bytes = ioctl(machine->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (run_bytes < 0)
        return -1;
    *name = "mmap of kvm_run";
    void *run = mmap(NULL, (size_t)run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, machine->vcpu_fd, 0);
    if (run == MAP_FAILED)
        return -1;
    machine->run = run;
    machine->run_bytes = (size_t)run_bytes;
    if (copy_supported_cpuid(machine, name) < 0 || enforce_shown_features(machine, name) < 0)
        return -1;
    return set_registers(machine, vm->memory.bytes, entry, name);
}

int machine_finish(struct machine *machine, const struct vm *vm, gpa_t entry, struct machine_error *error)
{
    const char *name = "";
    if (make_vcpu(machine, vm, entry, &name) < 0)
        return ioctl_failed(machine, error, name);
    int khz = ioctl(machine->vcpu_fd, KVM_GET_TSC_KHZ, 0);
    if (khz < 0 && errno == EIO)
        return failed(machine, error, 0, EIO, "KVM: host TSC is unstable, cannot continue");
    if (khz < 0)
        return failed(machine, error, 0, errno, "KVM: ioctl (GET_TSC_KHZ) failed: %s", strerror(errno));
    machine->tsc_hz = (uint64_t)khz * 1000;
    close(machine->kvm_fd); /* nothing asks it any more */
    machine->kvm_fd = -1;
    return 0;
}

void machine_leave(struct machine *machine)
{
    if (machine->run)
        machine->run->immediate_exit = 1;
}

void machine_close(struct machine *machine)
{
    if (machine->run)
        munmap(machine->run, machine->run_bytes);
    machine->run = NULL;
    int *const fds[] = {&machine->vcpu_fd, &machine->vm_fd, &machine->kvm_fd};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++) {
        if (*fds[i] >= 0)
            close(*fds[i]);
        *fds[i] = -1;
    }
}
