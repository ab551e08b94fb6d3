#define _GNU_SOURCE
#include "kvm_machine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "guest_cpu.h"
#include "kvm_cpu_state.h"
#include "run_kvm.h"
#include "says.h"

#define CPUID_ENTRIES     256 /* KVM_MAX_CPUID_ENTRIES, which no header has */
#define CPUID_ENTRIES_FEW 100 /* processors have about 60: a short table is less to clear and to touch */

static __attribute__((format(printf, 4, 5))) int failed(struct machine_error *error, const char *code,
                                                        int os_error, const char *format, ...)
{
    va_list arguments;
    *error = (struct machine_error){.os_error = os_error};
    (void)snprintf(error->code, sizeof error->code, "%s", code);
    va_start(arguments, format);
    (void)vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    return -1;
}

static int ioctl_failed(struct machine_error *error, const char *name)
{
    const int os_error = errno;
    return failed(error, "kvm-ioctl", os_error, says_ioctl_failed, name, strerror(os_error));
}

int kvm_machine_open(struct kvm_machine *machine, struct machine_error *error)
{
    machine->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (machine->kvm_fd < 0)
        return failed(error, "kvm-missing", errno, "Could not open: /dev/kvm: %s", strerror(errno));
    int version = ioctl(machine->kvm_fd, KVM_GET_API_VERSION, 0);
    if (version < 0)
        return failed(error, "kvm", errno, "/dev/kvm: not KVM: %s", strerror(errno));
    if (version != KVM_API_VERSION)
        return failed(error, "kvm", 0, says_api_version, version, KVM_API_VERSION);
    machine->vm_fd = ioctl(machine->kvm_fd, KVM_CREATE_VM, 0);
    return machine->vm_fd < 0 ? ioctl_failed(error, "CREATE_VM") : 0;
}

/*
 * The MSR filter is set before there is a vCPU: with a vCPU, KVM would have to go through its registers
 * again. The filter is not set immediately after the VM or the memory slot is made either: then the grace
 * period that KVM waits for would not be an expedited one (SRCU's exp_holdoff), and would take a tick.
 * ENOTTY: before Linux 5.10 there is no filter, and KVM's own choice applies; the doctor reports that.
 */
int kvm_machine_prepare(struct kvm_machine *machine, const struct vm *vm, struct machine_error *error)
{
    if (ioctl(machine->vm_fd, KVM_X86_SET_MSR_FILTER, guest_msr_filter()) < 0 && errno != ENOTTY)
        return ioctl_failed(error, "X86_SET_MSR_FILTER");
    const int refused = kvm_set_memory(vm, machine->vm_fd);
    errno = -refused;
    return refused < 0 ? ioctl_failed(error, "SET_USER_MEMORY_REGION") : 0;
}

int kvm_machine_add_vcpu(struct kvm_machine *machine, struct machine_error *error)
{
    machine->vcpu_fd = ioctl(machine->vm_fd, KVM_CREATE_VCPU, 0);
    return machine->vcpu_fd < 0 ? ioctl_failed(error, "CREATE_VCPU") : 0;
}

/* ---- what KVM answers identically for every VM of a process: the first VM asks */

struct cpuid_table {
    struct kvm_cpuid2 head;
    struct kvm_cpuid_entry2 entries[CPUID_ENTRIES];
};

static struct cpuid_table shown;
enum asked { UNASKED, ASKING, SHOWN };
static _Atomic enum asked shown_is; /* SHOWN pairs with the reads of `shown` */
static _Atomic int run_bytes;

struct kvm_cpuid2 *kvm_machine_cpuid(void)
{
    return atomic_load(&shown_is) == SHOWN ? &shown.head : NULL;
}

static int ask_cpuid(int kvm_fd, struct cpuid_table *table)
{
    table->head.nent = CPUID_ENTRIES_FEW;
    int refused = ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, table);
    if (refused < 0 && errno == E2BIG) {
        table->head.nent = CPUID_ENTRIES;
        refused = ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, table);
    }
    if (refused == 0)
        guest_cpuid_filter(&table->head);
    return refused;
}

/* If a second thread comes while the first one asks, it asks for itself and gets an equal answer. So there is
 * no lock that a fork could find held. */
static int set_cpuid(const struct kvm_machine *machine, const char **name)
{
    struct cpuid_table own, *table = &shown;
    *name = "GET_SUPPORTED_CPUID";
    if (atomic_load(&shown_is) != SHOWN) {
        enum asked unasked = UNASKED;
        const bool is_first = atomic_compare_exchange_strong(&shown_is, &unasked, ASKING);
        table = is_first ? &shown : &own;
        const int refused = ask_cpuid(machine->kvm_fd, table);
        if (is_first)
            atomic_store(&shown_is, refused < 0 ? UNASKED : SHOWN);
        if (refused < 0)
            return -1;
    }
    *name = "SET_CPUID2";
    return ioctl(machine->vcpu_fd, KVM_SET_CPUID2, table);
}

static int map_run(struct kvm_machine *machine, const char **name)
{
    *name = "GET_VCPU_MMAP_SIZE";
    int bytes = atomic_load(&run_bytes);
    if (!bytes)
        bytes = ioctl(machine->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (bytes < 0)
        return -1;
    atomic_store(&run_bytes, bytes);
    *name = "mmap of kvm_run";
    void *run = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, machine->vcpu_fd, 0);
    if (run == MAP_FAILED)
        return -1;
    machine->run = run;
    machine->run_bytes = (size_t)bytes;
    return 0;
}

/* Without it KVM accepts requests that CPUID does not show: a `vmcall` or `vmmcall` that wakes a vCPU or
 * sends an interrupt. It is a capability of the vCPU. EINVAL: before Linux 5.10 it does not exist, and
 * KVM's own choice applies; the doctor reports that. */
static int enforce_shown_features(const struct kvm_machine *machine, const char **name)
{
    const struct kvm_enable_cap enforce = {.cap = KVM_CAP_ENFORCE_PV_FEATURE_CPUID, .args = {1}};
    *name = "ENABLE_CAP (ENFORCE_PV_FEATURE_CPUID)";
    return ioctl(machine->vcpu_fd, KVM_ENABLE_CAP, &enforce) < 0 && errno != EINVAL ? -1 : 0;
}

int kvm_machine_finish(struct kvm_machine *machine, const struct cpu_state *start,
                       struct machine_error *error)
{
    const char *name = "";
    if (map_run(machine, &name) < 0 || set_cpuid(machine, &name) < 0 ||
        enforce_shown_features(machine, &name) < 0)
        return ioctl_failed(error, name);
    const int refused = kvm_cpu_state_set(machine->vcpu_fd, CPU_ALL, start, &name);
    errno = -refused;
    if (refused < 0)
        return ioctl_failed(error, name);
    int khz = ioctl(machine->vcpu_fd, KVM_GET_TSC_KHZ, 0);
    if (khz < 0 && errno == EIO)
        return failed(error, "tsc-unstable", EIO, "KVM: host TSC is unstable, cannot continue");
    if (khz < 0)
        return failed(error, "", errno, says_ioctl_failed, "GET_TSC_KHZ", strerror(errno));
    machine->tsc_hz = (uint64_t)khz * 1000;
    return 0;
}

void kvm_machine_leave(struct kvm_machine *machine)
{
    if (machine->run)
        machine->run->immediate_exit = 1;
}

void kvm_machine_close(struct kvm_machine *machine)
{
    if (machine->run)
        munmap(machine->run, machine->run_bytes);
    int *const fds[] = {&machine->vcpu_fd, &machine->vm_fd, &machine->kvm_fd};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (*fds[i] >= 0)
            close(*fds[i]);
    *machine = KVM_MACHINE_NONE;
}
