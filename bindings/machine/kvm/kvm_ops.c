/* machine_ops on KVM. */
#define _GNU_SOURCE
#include "kvm_ops.h"

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "close_later.h"
#include "copy_fault.h"
#include "debug_note.h"
#include "deferred_teardown.h"
#include "device_ops.h"
#include "entered.h"
#include "image_memory.h"
#include "kvm_cpu_state.h"
#include "reset_kvm.h"
#include "rights.h"
#include "run_kvm.h"
#include "runner.h"
#include "start_state.h"
#include "trace.h"
#include "words.h"

struct kvm {
    struct kvm_machine machine;
    struct deferred_teardown teardown;
    bool is_deferred; /* `teardown` is prepared */
    gpa_t entry;
};
_Static_assert(sizeof(struct kvm) <= MACHINE_OWN_BYTES, "it fits");

static struct kvm *own(const struct machine *machine)
{
    return (struct kvm *)(void *)(uintptr_t)machine->own;
}

struct kvm_machine *kvm_of(struct machine *machine)
{
    return &own(machine)->machine;
}

/* ---- making it */

static bool exists(const char *path)
{
    struct stat about;
    return stat(path, &about) == 0;
}

/* A KVM without a vendor's module interprets guests in software, each KVM to another extent. The doctor's
 * trial shows what this one can do. */
static enum machine_look look(struct machine_error *why)
{
    static atomic_bool has_vendor; /* stays true in this process */
    if (!exists("/dev/kvm"))
        return MACHINE_ABSENT;
    if (!atomic_load(&has_vendor) && !exists("/sys/module/kvm_intel") && !exists("/sys/module/kvm_amd")) {
        if (!exists("/sys/module/kvm"))
            return MACHINE_LIKELY;
        *why = (struct machine_error){.code = "kvm"};
        (void)snprintf(why->text, sizeof why->text, "%s",
                       "/dev/kvm belongs to neither kvm_intel nor kvm_amd; `tender doctor` tests it");
        return MACHINE_UNFIT;
    }
    atomic_store(&has_vendor, true);
    return MACHINE_LIKELY;
}

static struct cpu_state *start_of(const struct machine *machine, struct cpu_state *start)
{
    start_state_registers(own(machine)->entry, machine->vm->memory.bytes, start);
    return start;
}

static int no_memory(struct machine_error *error, int refused)
{
    *error = (struct machine_error){.os_error = -refused, .code = "memory"};
    (void)snprintf(error->text, sizeof error->text, "Error allocating guest memory: %s",
                   refused == -ENOEXEC
                       ? "this process could execute that memory: its personality is READ_IMPLIES_EXEC"
                       : strerror(-refused));
    return -1;
}

/* Without a sealed template: segments are read directly to their places in guest memory. */
static int map_and_load(struct vm *vm, const struct machine_plan *plan, uint64_t guest_bytes)
{
    const struct elf_image *image = plan->image;
    const int refused = guest_memory_reserve(&vm->memory, guest_bytes, plan->mem_bytes);
    if (refused < 0)
        return refused;
    /* guest_map.c does this for all of it after the load, but the memory is touched before that. */
    (void)madvise(vm->memory.hva, guest_small_pages_end(image_end(image), guest_bytes), MADV_NOHUGEPAGE);
    start_state_write_tables(vm->memory.hva, plan->mem_bytes, image->extensions);
    plan->load(vm->memory.hva, true);
    return image_memory_protect(&vm->memory, image);
}

static int make_memory(struct vm *vm, const struct machine_plan *plan, struct machine_error *error)
{
    const struct elf_image *image = plan->image;
    const uint64_t guest_bytes = plan->mem_bytes - (plan->ring_mode == RING_NONE ? 0 : HVT_RING_AREA_BYTES);
    vm->extensions = image->extensions;
    const int refused =
        plan->load ? map_and_load(vm, plan, guest_bytes)
                   : image_memory_map(&vm->memory, image, plan->template_fd,
                                      start_state_template_bytes(image), guest_bytes, plan->mem_bytes);
    if (refused < 0)
        return no_memory(error, refused);
    if (plan->ring_mode != RING_NONE)
        devices_offer(vm, vm->memory.hva + guest_bytes, plan->ring_mode);
    return 0;
}

static void write_boot_info(struct machine *machine, const struct machine_plan *plan)
{
    const struct guest_memory *memory = &machine->vm->memory;
    uint8_t *const boot_info = memory->hva + HVT_BOOT_INFO_GPA;
    start_state_write_boot_info(boot_info, plan->image, plan->manifest, memory->bytes,
                                kvm_of(machine)->tsc_hz, machine->vm->doorbell ? memory->bytes : 0,
                                plan->cmdline, plan->cmdline_bytes);
    entered(memory, boot_info, START_STATE_BOOT_BYTES, ENTERED_BOOT_INFO);
}

static int make_vcpu(struct machine *machine, gpa_t entry, struct machine_error *error)
{
    struct kvm_machine *kvm = kvm_of(machine);
    struct cpu_state start; /* most of it is not used here: its pages are never touched */
    own(machine)->entry = entry;
    if (kvm_machine_prepare(kvm, machine->vm, error) < 0 || kvm_machine_add_vcpu(kvm, error) < 0)
        return -1;
    return kvm_machine_finish(kvm, start_of(machine, &start), error);
}

/*
 * The ring of the last hypercalls. The command has one VM, and may not map memory while its guest runs. Pages
 * are touched only if hypercalls are recorded. The library maps a ring when it is first used (run_kvm.c).
 */
LAST_IN_BSS struct trace_record commands_ring[TRACE_RECORDS];

/* The library has made the descriptors of /dev/kvm and of the VM itself, and still uses that of /dev/kvm. */
static int open_machine(struct machine *machine, const struct machine_plan *plan, struct machine_error *error)
{
    struct kvm_machine *kvm = kvm_of(machine);
    struct vm *vm = machine->vm;
    const bool is_command = plan->load != NULL;
    if (is_command)
        *kvm = KVM_MACHINE_NONE;
    if ((is_command && kvm_machine_open(kvm, error) < 0) || make_memory(vm, plan, error) < 0 ||
        make_vcpu(machine, plan->image->entry, error) < 0) {
        kvm_machine_close(kvm);
        devices_offer(vm, NULL, RING_NONE);
        guest_memory_unmap(&vm->memory);
        return -1;
    }
    if (is_command)
        vm->trace = commands_ring;
    if (plan->debuggable) /* refused where there is no Yama, and not needed there */
        (void)prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
    if (is_command) {
        close(kvm->kvm_fd);
        kvm->kvm_fd = -1;
    }
    write_boot_info(machine, plan);
    return 0;
}

/* Whatever is usually done at its first use is done now, because afterwards this process may not do it. */
static uint32_t confine(struct machine *machine, const struct confinement *keeps)
{
    struct vm *vm = machine->vm;
    struct deferred_teardown *teardown = &own(machine)->teardown;
    copy_fault_prepare(vm);
    if (vm->map_devices)
        vm->map_devices(vm);
    *teardown = (struct deferred_teardown){-1, -1, -1};
    if (!keeps->replaces_calls)
        deferred_teardown_prepare(teardown);
    own(machine)->is_deferred = true;
    give_up_file_growth(vm, keeps);
    uint32_t layers = ISOLATION_KVM | give_up_rights();
    devices_prepare(vm);
    return layers | give_up_calls(teardown, vm, keeps);
}

static uint32_t isolation(struct machine *machine)
{
    (void)machine;
    return ISOLATION_KVM; /* the process is not confined */
}

/* ---- while it runs */

static void run(struct machine *machine)
{
    kvm_run_loop(machine->vm, kvm_of(machine)->vcpu_fd, kvm_of(machine)->run);
}

static void kick(struct machine *machine)
{
    kvm_machine_leave(kvm_of(machine));
}

static int get_cpu_state(struct machine *machine, uint32_t parts, struct cpu_state *state)
{
    return kvm_cpu_state_get(kvm_of(machine)->vcpu_fd, parts, state);
}

static int set_cpu_state(struct machine *machine, uint32_t parts, const struct cpu_state *state)
{
    const char *name;
    return kvm_cpu_state_set(kvm_of(machine)->vcpu_fd, parts, state, &name);
}

static int64_t read_memory(struct machine *machine, gpa_t gpa, void *to, uint64_t len)
{
    memcpy(to, machine->vm->memory.hva + gpa, len);
    return (int64_t)len;
}

/* The kernel copies, and refuses where our mapping is not writable. */
static int64_t write_memory(struct machine *machine, gpa_t gpa, const void *from, uint64_t len)
{
    const struct guest_memory *memory = &machine->vm->memory;
    const struct iovec here = {(void *)(uintptr_t)from, len}, there = {memory->hva + gpa, len};
    const ssize_t put = process_vm_writev(getpid(), &here, 1, &there, 1, 0);
    if (put < 0)
        return -errno;
    entered(memory, there.iov_base, (uint64_t)put, ENTERED_HOST);
    return put;
}

static const void *console(struct machine *machine, const struct vm_event *event)
{
    return machine->vm->memory.hva + event->gpa;
}

/* ---- reuse */

static _Atomic(struct kvm_fresh *) fresh; /* from any vCPU of this process; never freed */

/* Two threads that take it at the same time get equal states. */
static int take_fresh(const struct kvm_machine *kvm)
{
    struct kvm_fresh *none = NULL;
    if (atomic_load(&fresh))
        return 0;
    struct kvm_fresh *taken = kvm_fresh_take(kvm->kvm_fd, kvm->vcpu_fd);
    if (!taken)
        return -errno;
    if (!atomic_compare_exchange_strong(&fresh, &none, taken))
        free(taken);
    return 0;
}

static int keep(struct machine *machine, int template_fd)
{
    const int error = guest_memory_keep(&machine->vm->memory, template_fd);
    return error ? error : take_fresh(kvm_of(machine));
}

/* Memory is reset after the vCPU: the reset makes KVM complete the last guest's exit, and completing an `ins`
 * writes to memory. */
static int reset(struct machine *machine)
{
    struct cpu_state start;
    const int error = kvm_reset(atomic_load(&fresh), kvm_of(machine), start_of(machine, &start));
    return error ? error : vm_reset(machine->vm);
}

/* ---- the end */

/* The descriptors of a process's first vCPU are never closed. While a host has a vCPU without a local
 * APIC, KVM makes another one in a tenth of the instructions. For the first such vCPU, KVM patches its
 * code and notifies every processor; after the last one it does so again. The vCPU holds its VM, whose
 * memory is gone.
 *
 * The kept machine stays open until the next VM is made, which takes the memory slot from it. A slot is a
 * range of our addresses, and the next VM's memory comes to lie in that range. The kernel would report
 * every change in the range to the old machine too, which would walk its page tables: a sixth of the boot
 * of an image of more than 2 MiB.
 *
 * `kept` is one word, because there must be no lock that a fork could find held. It holds the process and the
 * machine's descriptor; the descriptor is all ones if its slot is empty.
 */
static _Atomic uint64_t kept;
#define KEPT(process, fd) ((uint64_t)(uint32_t)(process) << 32 | (uint32_t)(fd))

/* True: from now on this VM's vCPU and its machine are the kept ones. In a fork, those of the parent stay as
 * they are. */
static bool keep_vcpu(pid_t process, int vm_fd)
{
    uint64_t now = atomic_load(&kept);
    do
        if (now >> 32 == (uint32_t)process)
            return false;
    while (!atomic_compare_exchange_weak(&kept, &now, KEPT(process, vm_fd)));
    return true;
}

void kvm_empty_kept(void)
{
    const pid_t process = getpid();
    uint64_t now = atomic_load(&kept);
    do
        if (now >> 32 != (uint32_t)process || (uint32_t)now == UINT32_MAX)
            return;
    while (!atomic_compare_exchange_weak(&kept, &now, KEPT(process, -1)));
    kvm_clear_memory((int)(uint32_t)now);
    close((int)(uint32_t)now);
}

/* A fork has only copies; the machine belongs to its parent. The inherited vCPU page keeps its vCPU. */
static void close_machine(struct machine *machine)
{
    struct kvm_machine *kvm = kvm_of(machine);
    int vm_fd = -1;
    if (runner_of(machine->vm)->process == getpid()) {
        if (kvm->run && keep_vcpu(runner_of(machine->vm)->process, kvm->vm_fd))
            kvm->vcpu_fd = kvm->vm_fd = -1;
        vm_fd = kvm->vm_fd;
        kvm->vm_fd = -1;
    }
    kvm_machine_close(kvm);
    if (machine->vm->trace && machine->vm->trace != commands_ring)
        munmap(machine->vm->trace, TRACE_BYTES);
    machine->vm->trace = NULL;
    if (vm_fd >= 0)
        close_later(vm_fd); /* the VM's last close, which waits in the kernel */
}

static void leave(struct machine *machine)
{
    if (own(machine)->is_deferred)
        teardown_defer(&own(machine)->teardown, kvm_of(machine));
}

/* ---- for a debugger */

DEBUG_NOTE(debug_facts_of_kvm)
{
#define OF_KVM(name, member)                                                                                 \
    DEBUG_NUMBER(name, offsetof(struct machine, own) + offsetof(struct kvm, machine.member))
    OF_KVM("kvm_vcpu_fd", vcpu_fd);
    OF_KVM("kvm_vm_fd", vm_fd);
    OF_KVM("kvm_run", run);
}

/* ---- its messages */

#define NATIVE_LIBRARY                                                                                       \
    "on KVM only the command confines itself, and the library does not: use backend=\"sandbox\""
#define NATIVE_COMMAND                                                                                       \
    "on KVM only the native command confines itself: leave out --stats and --verbose, or "                   \
    "use --backend=sandbox"
#define NATIVE_CURES EACH(NATIVE_LIBRARY, NATIVE_COMMAND)
#define SANDBOX_CURES                                                                                        \
    EACH("only the sandbox has it: use backend=\"sandbox\"", "only the sandbox has it: use "                 \
                                                             "--backend=sandbox")

static const char *const cures[ISOLATION_LAYERS][2] = {
    SANDBOX_CURES,
    SANDBOX_CURES,
    SANDBOX_CURES,
    SANDBOX_CURES,
    SANDBOX_CURES,
    SANDBOX_CURES,
    EACH(LANDLOCK_CURE "; " NATIVE_LIBRARY, LANDLOCK_CURE "; " NATIVE_COMMAND),
    NATIVE_CURES,
    NATIVE_CURES,
    NATIVE_CURES,
    BOTH(""),
};

static const struct machine_words words = {
    .title = "KVM",
    .run_call = "ioctl (RUN)",
    /* Linux makes a thread at the first KVM_RUN of a VM. */
    .run_hint = ": no more processes or threads may be made here; see ulimit -u, and pids.max of the cgroup",
    .cures = cures,
};

const struct machine_ops kvm_ops = {
    .name = "kvm",
    .words = &words,
    .serves_ring = true,
    .look = look,
    .open = open_machine,
    .confine = confine,
    .isolation = isolation,
    .run = run,
    .kick = kick,
    .get_cpu_state = get_cpu_state,
    .set_cpu_state = set_cpu_state,
    .read = read_memory,
    .write = write_memory,
    .console = console,
    .write_boot_info = write_boot_info,
    .keep = keep,
    .reset = reset,
    .close = close_machine,
    .leave = leave,
};
