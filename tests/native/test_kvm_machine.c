/*
 * Making a virtual machine on KVM: what KVM is given, and what happens after a refusal. No KVM:
 * this file's `ioctl` refuses the requests that it is told to refuse, and keeps what it was given.
 * Values are repeated here from the contract and the manuals, not taken from the code.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "devices.h"
#include "holds.h"
#include "kvm_cpu_state.h"
#include "kvm_ops.h"
#include "runner.h"
#include "start_state.h"

#define PAGE 4096
#define MIB  (1u << 20)

static struct {
    unsigned long refused; /* a request that is refused, */
    int with;              /* and its errno */
    uint32_t leaves;       /* how many CPUID has; too many give E2BIG */
    uint32_t given_leaves;
    struct kvm_sregs sregs;
    struct kvm_regs regs;
    struct kvm_debugregs debugregs;
    struct kvm_xcrs xcrs;
    struct kvm_xsave xsave;
    uint64_t msrs[16];
    uint32_t msrs_there;
} fake;

static int take_or_give(unsigned long request, void *argument)
{
    struct kvm_cpuid2 *const cpuid = argument;
    struct kvm_msrs *const msrs = argument;
    switch (request) {
    case KVM_GET_VCPU_MMAP_SIZE:
        return PAGE;
    case KVM_GET_TSC_KHZ:
        return 2000000;
    case KVM_GET_SUPPORTED_CPUID:
        if (cpuid->nent < fake.leaves) {
            errno = E2BIG;
            return -1;
        }
        cpuid->nent = fake.leaves;
        for (uint32_t i = 0; i < fake.leaves; i++)
            cpuid->entries[i] = (struct kvm_cpuid_entry2){.function = 0x8f000000 + i};
        return 0;
    case KVM_SET_CPUID2:
        fake.given_leaves = cpuid->nent;
        return 0;
#define KEPT(name, member)                                                                                   \
    case KVM_SET_##name:                                                                                     \
        memcpy(&fake.member, argument, sizeof fake.member);                                                  \
        return 0;                                                                                            \
    case KVM_GET_##name:                                                                                     \
        memcpy(argument, &fake.member, sizeof fake.member);                                                  \
        return 0
        KEPT(SREGS, sregs);
        KEPT(REGS, regs);
        KEPT(DEBUGREGS, debugregs);
        KEPT(XCRS, xcrs);
        KEPT(XSAVE, xsave);
    case KVM_SET_MSRS:
    case KVM_GET_MSRS: {
        const uint32_t count = msrs->nmsrs < fake.msrs_there ? msrs->nmsrs : fake.msrs_there;
        for (uint32_t i = 0; i < count; i++)
            if (request == KVM_SET_MSRS)
                fake.msrs[i] = msrs->entries[i].data;
            else
                msrs->entries[i].data = fake.msrs[i];
        return (int)count;
    }
    default:
        return 0;
    }
}

int __wrap_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    void *const argument = va_arg(arguments, void *);
    va_end(arguments);
    (void)fd;
    if (request == fake.refused) {
        errno = fake.with;
        return -1;
    }
    return take_or_give(request, argument);
}

/* Makes a machine from the memory slot on, with a vCPU whose page can be mapped. */
static int make(unsigned long refused, int with, struct machine_error *error)
{
    static struct vm vm;
    struct cpu_state start;
    struct kvm_machine machine = KVM_MACHINE_NONE;
    memset(error, 0, sizeof *error);
    fake.refused = refused;
    fake.with = with;
    fake.msrs_there = 9;
    start_state_registers(0x123456, 64 * MIB, &start);
    int answer = kvm_machine_prepare(&machine, &vm, error);
    if (!answer)
        answer = kvm_machine_add_vcpu(&machine, error);
    if (!answer) {
        machine.vcpu_fd = memfd_create("vcpu", MFD_CLOEXEC);
        HOLDS(ftruncate(machine.vcpu_fd, PAGE) == 0);
        answer = kvm_machine_finish(&machine, &start, error);
    }
    HOLDS(answer || machine.tsc_hz == 2000000000u);
    kvm_machine_close(&machine);
    HOLDS(machine.vcpu_fd == -1 && machine.vm_fd == -1 && machine.kvm_fd == -1 && !machine.run);
    fake.refused = 0;
    return answer;
}

static void is_named(unsigned long request, const char *name)
{
    struct machine_error error;
    char text[128];
    HOLDS(make(request, EBADF, &error) == -1);
    (void)snprintf(text, sizeof text, "KVM: ioctl (%s) failed: Bad file descriptor", name);
    HOLDS(strcmp(error.text, text) == 0);
    HOLDS(error.os_error == EBADF && strcmp(error.code, "kvm-ioctl") == 0);
}

/* Before any machine is made. solo5-hvt has space for 100 leaves. KVM itself accepts 256. */
static void test_what_is_equal_for_every_vm_is_asked_once_and_a_refusal_is_not_kept(void)
{
    struct machine_error error;
    is_named(KVM_GET_VCPU_MMAP_SIZE, "GET_VCPU_MMAP_SIZE");
    is_named(KVM_GET_SUPPORTED_CPUID, "GET_SUPPORTED_CPUID");
    HOLDS(!kvm_machine_cpuid());
    fake.leaves = 256;
    HOLDS(make(0, 0, &error) == 0);
    HOLDS(fake.given_leaves == 256 && kvm_machine_cpuid()->nent == 256);
    fake.given_leaves = 0;
    HOLDS(make(KVM_GET_VCPU_MMAP_SIZE, EBADF, &error) == 0);
    HOLDS(make(KVM_GET_SUPPORTED_CPUID, EBADF, &error) == 0);
    HOLDS(fake.given_leaves == 256);
}

static void test_what_is_refused_is_named(void)
{
    static const struct {
        unsigned long request;
        const char *name;
    } rows[] = {
        {KVM_X86_SET_MSR_FILTER, "X86_SET_MSR_FILTER"},
        {KVM_SET_USER_MEMORY_REGION, "SET_USER_MEMORY_REGION"},
        {KVM_CREATE_VCPU, "CREATE_VCPU"},
        {KVM_SET_CPUID2, "SET_CPUID2"},
        {KVM_ENABLE_CAP, "ENABLE_CAP (ENFORCE_PV_FEATURE_CPUID)"},
        {KVM_SET_SREGS, "SET_SREGS"},
        {KVM_SET_REGS, "SET_REGS"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        is_named(rows[i].request, rows[i].name);
}

static void test_a_kernel_without_a_filter_or_a_capability_is_no_error(void)
{
    struct machine_error error;
    HOLDS(make(KVM_X86_SET_MSR_FILTER, ENOTTY, &error) == 0);
    HOLDS(make(KVM_ENABLE_CAP, EINVAL, &error) == 0);
    HOLDS(make(KVM_ENABLE_CAP, ENOTTY, &error) == -1);
    HOLDS(make(KVM_X86_SET_MSR_FILTER, EINVAL, &error) == -1);
}

static void test_an_unstable_clock_does_not_make_kvm_unavailable(void)
{
    struct machine_error error;
    HOLDS(make(KVM_GET_TSC_KHZ, EIO, &error) == -1);
    HOLDS(strcmp(error.code, "tsc-unstable") == 0);
    HOLDS(strcmp(error.text, "KVM: host TSC is unstable, cannot continue") == 0);
    HOLDS(make(KVM_GET_TSC_KHZ, EBADF, &error) == -1);
    HOLDS(strcmp(error.code, "") == 0);
}

/* Another machine may use the VM then. */
static void test_a_machine_that_cannot_be_made_leaves_nothing_in_its_vm(void)
{
    static const unsigned long refused[] = {KVM_X86_SET_MSR_FILTER, KVM_CREATE_VCPU};
    static struct elf_image image;
    const uint64_t bytes = start_state_template_bytes(&image);
    const int template_fd = memfd_create("template", MFD_CLOEXEC);
    HOLDS(ftruncate(template_fd, (off_t)bytes) == 0);
    const struct machine_plan plan = {
        .image = &image, .mem_bytes = 4 * MIB, .ring_mode = RING_INLINE, .template_fd = template_fd};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        struct vm vm = {0};
        struct machine machine = {.vm = &vm};
        struct machine_error error;
        *kvm_of(&machine) =
            (struct kvm_machine){.kvm_fd = dup(template_fd), .vm_fd = dup(template_fd), .vcpu_fd = -1};
        const int fds[] = {kvm_of(&machine)->kvm_fd, kvm_of(&machine)->vm_fd};
        HOLDS(vm_init(&vm) == 0);
        fake.refused = refused[i];
        fake.with = EBADF;
        HOLDS(kvm_ops.open(&machine, &plan, &error) == -1 && strcmp(error.code, "kvm-ioctl") == 0);
        HOLDS(!vm.memory.hva && !net_vm(&vm)->ring.shared && !vm.doorbell);
        HOLDS(fcntl(fds[0], F_GETFD) < 0 && fcntl(fds[1], F_GETFD) < 0);
        vm_release(&vm);
    }
    fake.refused = 0;
    close(template_fd);
}

/* ---- the start state, as it is given to KVM */

static void is_segment(const struct kvm_segment *s, const uint64_t expected[11])
{
    const uint64_t found[11] = {s->base, s->limit, s->selector, s->type, s->present, s->dpl,
                                s->db,   s->s,     s->l,        s->g,    s->unusable};
    for (int i = 0; i < 11; i++)
        HOLDS(found[i] == expected[i]);
}

static void test_cached_segments(void)
{
    struct cpu_state start;
    struct kvm_sregs s;
    memset(&start, 0xff, sizeof start); /* so that fields that are not written are found */
    memset(&s, 0xff, sizeof s);
    start_state_registers(0x123456, 64 * MIB, &start);
    kvm_sregs_of(&start.system, &s);
    is_segment(&s.cs, (const uint64_t[11]){0, 0xffffffff, 8, 9, 1, 0, 0, 1, 1, 1, 0});
    const struct kvm_segment *data[] = {&s.ss, &s.ds, &s.es, &s.fs, &s.gs};
    for (int i = 0; i < 5; i++)
        is_segment(data[i], (const uint64_t[11]){0, 0xffffffff, 0x10, 3, 1, 0, 1, 1, 0, 1, 0});
    is_segment(&s.tr, (const uint64_t[11]){0, 0, 0, 11, 1});
    HOLDS(s.ldt.unusable == 1);
}

static void test_special_registers_and_apic_base(void)
{
    struct cpu_state start;
    struct kvm_sregs s;
    memset(&start, 0xff, sizeof start);
    memset(&s, 0xff, sizeof s);
    start_state_registers(0x123456, 64 * MIB, &start);
    kvm_sregs_of(&start.system, &s);
    HOLDS(s.cr0 == 0x80010021 && s.cr2 == 0 && s.cr3 == 0x2000 && s.cr4 == 0x620 && s.cr8 == 0);
    HOLDS(s.efer == 0x500 && s.apic_base == 0);
    HOLDS(s.gdt.base == 0x1000 && s.gdt.limit == 23 && s.idt.base == 0 && s.idt.limit == 0);
    for (size_t i = 0; i < sizeof s.interrupt_bitmap / sizeof *s.interrupt_bitmap; i++)
        HOLDS(s.interrupt_bitmap[i] == 0);
}

static void test_registers_for_an_entry_and_a_size(void)
{
    struct cpu_state start;
    struct kvm_regs regs;
    memset(&start, 0xff, sizeof start);
    memset(&regs, 0xff, sizeof regs);
    start_state_registers(0x123456, 64 * MIB, &start);
    kvm_regs_of(&start.general, &regs);
    HOLDS(regs.rip == 0x123456 && regs.rsp == 64 * MIB - 8 && regs.rdi == 0x10000 && regs.rflags == 2);
    HOLDS(!(regs.rax | regs.rbx | regs.rcx | regs.rdx | regs.rsi | regs.rbp | regs.r8 | regs.r15));
    HOLDS(start.known == (CPU_GENERAL | CPU_SYSTEM));
}

/* ---- any state */

/* Fills with bytes that all differ, so that two exchanged registers are found. */
static void fill(void *to, size_t bytes, uint8_t from)
{
    for (size_t i = 0; i < bytes; i++)
        ((uint8_t *)to)[i] = (uint8_t)(from + i * 7);
}

static void test_every_register_is_in_its_place(void)
{
    struct kvm_regs regs;
    struct cpu_general general;
    fill(&general, sizeof general, 1);
    kvm_regs_of(&general, &regs);
    const uint64_t order[] = {regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi,
                              regs.r8,  regs.r9,  regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15};
    HOLDS(memcmp(order, general.gpr, sizeof order) == 0);
}

static void test_state_that_was_set_is_read_back(void)
{
    static struct cpu_state given, had;
    const char *name = NULL;
    fill(&given, sizeof given, 3);
    given.known = CPU_ALL;
    given.fpu.xsave[512] |= 3; /* x87 and SSE are always reported */
    fake.msrs_there = 9;
    HOLDS(kvm_cpu_state_set(0, CPU_ALL, &given, &name) == 0);
    HOLDS(kvm_cpu_state_get(0, CPU_ALL, &had) == 0 && had.known == CPU_ALL);
    HOLDS(memcmp(&had.general, &given.general, sizeof had.general) == 0);
    HOLDS(memcmp(&had.msrs, &given.msrs, sizeof had.msrs) == 0);
    HOLDS(memcmp(&had.debug, &given.debug, sizeof had.debug) == 0);
    HOLDS(had.fpu.xcr0 == given.fpu.xcr0 && memcmp(had.fpu.xsave, given.fpu.xsave, CPU_XSAVE_BYTES) == 0);
    HOLDS(had.system.cr0 == given.system.cr0 && had.system.cr8 == given.system.cr8);
    HOLDS(had.system.efer == given.system.efer && had.system.apic_base == given.system.apic_base);
    HOLDS(had.system.gdtr.base == given.system.gdtr.base && had.system.idtr.limit == given.system.idtr.limit);
    for (int i = 0; i < 6; i++) {
        const struct cpu_segment *one = &given.system.segment[i], *other = &had.system.segment[i];
        HOLDS(one->base == other->base && one->limit == other->limit && one->selector == other->selector);
        HOLDS(one->type == other->type && one->dpl == other->dpl && one->unusable == other->unusable);
    }
}

static void test_a_part_that_is_not_known_is_not_set(void)
{
    static struct cpu_state given;
    const char *name = NULL;
    memset(&fake.regs, 0x55, sizeof fake.regs);
    HOLDS(kvm_cpu_state_set(0, CPU_ALL, &given, &name) == 0);
    HOLDS(fake.regs.rax == 0x5555555555555555);
    given.known = CPU_GENERAL;
    HOLDS(kvm_cpu_state_set(0, CPU_SYSTEM, &given, &name) == 0);
    HOLDS(fake.regs.rax == 0x5555555555555555);
    HOLDS(kvm_cpu_state_set(0, CPU_GENERAL | CPU_SYSTEM, &given, &name) == 0);
    HOLDS(fake.regs.rax == 0);
}

/* Only TSC_AUX may be missing: it is the last one. */
static void test_an_msr_that_is_refused_is_an_error(void)
{
    static struct cpu_state state;
    fake.msrs_there = 8;
    HOLDS(kvm_cpu_state_get(0, CPU_MSRS, &state) == 0);
    fake.msrs_there = 7;
    HOLDS(kvm_cpu_state_get(0, CPU_MSRS, &state) == -EIO && state.known == 0);
}

int main(void)
{
    test_what_is_equal_for_every_vm_is_asked_once_and_a_refusal_is_not_kept();
    test_what_is_refused_is_named();
    test_a_kernel_without_a_filter_or_a_capability_is_no_error();
    test_an_unstable_clock_does_not_make_kvm_unavailable();
    test_a_machine_that_cannot_be_made_leaves_nothing_in_its_vm();
    test_cached_segments();
    test_special_registers_and_apic_base();
    test_registers_for_an_entry_and_a_size();
    test_every_register_is_in_its_place();
    test_state_that_was_set_is_read_back();
    test_a_part_that_is_not_known_is_not_set();
    test_an_msr_that_is_refused_is_an_error();
    return claims_end();
}
