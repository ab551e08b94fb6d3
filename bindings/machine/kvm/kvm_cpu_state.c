#define _GNU_SOURCE
#include "kvm_cpu_state.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>

/* ---- conversions to and from KVM's structures */

/* Both types have these fields with these names. */
#define SEGMENT(type_, s_)                                                                                   \
    (struct type_)                                                                                           \
    {                                                                                                        \
        .base = (s_)->base, .limit = (s_)->limit, .selector = (s_)->selector, .type = (s_)->type,            \
        .present = (s_)->present, .dpl = (s_)->dpl, .db = (s_)->db, .s = (s_)->s, .l = (s_)->l,              \
        .g = (s_)->g, .avl = (s_)->avl, .unusable = (s_)->unusable                                           \
    }

static struct kvm_segment segment_of(const struct cpu_segment *segment)
{
    return SEGMENT(kvm_segment, segment);
}

static struct cpu_segment segment_from(const struct kvm_segment *segment)
{
    return SEGMENT(cpu_segment, segment);
}

void kvm_sregs_of(const struct cpu_system *system, struct kvm_sregs *sregs)
{
    *sregs = (struct kvm_sregs){
        .es = segment_of(&system->segment[SEG_ES]),
        .cs = segment_of(&system->segment[SEG_CS]),
        .ss = segment_of(&system->segment[SEG_SS]),
        .ds = segment_of(&system->segment[SEG_DS]),
        .fs = segment_of(&system->segment[SEG_FS]),
        .gs = segment_of(&system->segment[SEG_GS]),
        .tr = segment_of(&system->tr),
        .ldt = segment_of(&system->ldtr),
        .gdt = {.base = system->gdtr.base, .limit = system->gdtr.limit},
        .idt = {.base = system->idtr.base, .limit = system->idtr.limit},
        .cr0 = system->cr0,
        .cr2 = system->cr2,
        .cr3 = system->cr3,
        .cr4 = system->cr4,
        .cr8 = system->cr8,
        .efer = system->efer,
        .apic_base = system->apic_base,
    };
}

static void system_from(const struct kvm_sregs *sregs, struct cpu_system *system)
{
    *system = (struct cpu_system){
        .segment = {[SEG_ES] = segment_from(&sregs->es),
                    [SEG_CS] = segment_from(&sregs->cs),
                    [SEG_SS] = segment_from(&sregs->ss),
                    [SEG_DS] = segment_from(&sregs->ds),
                    [SEG_FS] = segment_from(&sregs->fs),
                    [SEG_GS] = segment_from(&sregs->gs)},
        .tr = segment_from(&sregs->tr),
        .ldtr = segment_from(&sregs->ldt),
        .gdtr = {sregs->gdt.base, sregs->gdt.limit},
        .idtr = {sregs->idt.base, sregs->idt.limit},
        .cr0 = sregs->cr0,
        .cr2 = sregs->cr2,
        .cr3 = sregs->cr3,
        .cr4 = sregs->cr4,
        .cr8 = sregs->cr8,
        .efer = sregs->efer,
        .apic_base = sregs->apic_base,
    };
}

/* The offset in struct kvm_regs of each register, in the order of the instruction set. */
static const size_t places[GPR_COUNT] = {
    offsetof(struct kvm_regs, rax), offsetof(struct kvm_regs, rcx), offsetof(struct kvm_regs, rdx),
    offsetof(struct kvm_regs, rbx), offsetof(struct kvm_regs, rsp), offsetof(struct kvm_regs, rbp),
    offsetof(struct kvm_regs, rsi), offsetof(struct kvm_regs, rdi), offsetof(struct kvm_regs, r8),
    offsetof(struct kvm_regs, r9),  offsetof(struct kvm_regs, r10), offsetof(struct kvm_regs, r11),
    offsetof(struct kvm_regs, r12), offsetof(struct kvm_regs, r13), offsetof(struct kvm_regs, r14),
    offsetof(struct kvm_regs, r15),
};

void kvm_regs_of(const struct cpu_general *general, struct kvm_regs *regs)
{
    for (size_t i = 0; i < GPR_COUNT; i++)
        memcpy((uint8_t *)regs + places[i], &general->gpr[i], sizeof general->gpr[i]);
    regs->rip = general->rip;
    regs->rflags = general->rflags;
}

static void general_from(const struct kvm_regs *regs, struct cpu_general *general)
{
    for (size_t i = 0; i < GPR_COUNT; i++)
        memcpy(&general->gpr[i], (const uint8_t *)regs + places[i], sizeof general->gpr[i]);
    general->rip = regs->rip;
    general->rflags = regs->rflags;
}

/* Numbers and names: Intel SDM vol. 4, table 2-2. Some processors do not have the last one. */
static const struct {
    uint32_t index;
    size_t place;
} msr_places[] = {
    {0x174, offsetof(struct cpu_msrs, sysenter_cs)},  {0x175, offsetof(struct cpu_msrs, sysenter_esp)},
    {0x176, offsetof(struct cpu_msrs, sysenter_eip)}, {0xc0000081, offsetof(struct cpu_msrs, star)},
    {0xc0000082, offsetof(struct cpu_msrs, lstar)},   {0xc0000083, offsetof(struct cpu_msrs, cstar)},
    {0xc0000084, offsetof(struct cpu_msrs, fmask)},   {0xc0000102, offsetof(struct cpu_msrs, kernel_gs_base)},
    {0xc0000103, offsetof(struct cpu_msrs, tsc_aux)},
};
#define MSRS     (sizeof msr_places / sizeof *msr_places)
#define MSRS_MIN (MSRS - 1)
_Static_assert(MSRS * sizeof(uint64_t) == sizeof(struct cpu_msrs), "each has its place");

struct some_msrs {
    struct kvm_msrs head;
    struct kvm_msr_entry entries[MSRS];
};

/* KVM stops at the first MSR that it refuses, and returns how many it has processed. */
static int all_msrs(int done)
{
    return done < 0 ? -1 : (size_t)done >= MSRS_MIN ? 0 : (errno = EIO, -1);
}

static int get_msrs(int vcpu_fd, struct cpu_msrs *to)
{
    struct some_msrs msrs = {.head.nmsrs = MSRS};
    for (size_t i = 0; i < MSRS; i++)
        msrs.entries[i].index = msr_places[i].index;
    if (all_msrs(ioctl(vcpu_fd, KVM_GET_MSRS, &msrs)) < 0)
        return -1;
    for (size_t i = 0; i < MSRS; i++)
        memcpy((uint8_t *)to + msr_places[i].place, &msrs.entries[i].data, sizeof(uint64_t));
    return 0;
}

static int set_msrs(int vcpu_fd, const struct cpu_msrs *from)
{
    struct some_msrs msrs = {.head.nmsrs = MSRS};
    for (size_t i = 0; i < MSRS; i++) {
        msrs.entries[i].index = msr_places[i].index;
        memcpy(&msrs.entries[i].data, (const uint8_t *)from + msr_places[i].place, sizeof(uint64_t));
    }
    return all_msrs(ioctl(vcpu_fd, KVM_SET_MSRS, &msrs));
}

/* KVM API, 4.42: the area is one page; it is longer only for a process that has requested AMX. */
_Static_assert(sizeof(struct kvm_xsave) == CPU_XSAVE_BYTES, "the area as it is");

/* If the header leaves out a component, KVM keeps its state that lies outside of its own part of the area:
 * MXCSR. So the two oldest components are marked as present, with the values that are in the area anyway
 * (Intel SDM volume 1, 13.4). */
static void name_legacy_state(uint8_t *xsave)
{
    enum { XSTATE_BV = 512, X87_AND_SSE = 3 };
    xsave[XSTATE_BV] |= X87_AND_SSE;
}

static int get_fpu(int vcpu_fd, struct cpu_fpu *to)
{
    struct kvm_xcrs xcrs;
    if (ioctl(vcpu_fd, KVM_GET_XSAVE, to->xsave) < 0 || ioctl(vcpu_fd, KVM_GET_XCRS, &xcrs) < 0)
        return -1;
    name_legacy_state(to->xsave);
    to->xcr0 = 0;
    for (uint32_t i = 0; i < xcrs.nr_xcrs && i < sizeof xcrs.xcrs / sizeof *xcrs.xcrs; i++)
        if (xcrs.xcrs[i].xcr == 0)
            to->xcr0 = xcrs.xcrs[i].value;
    return 0;
}

/* XCR0 comes first: it selects the parts of the area. 0 is not a valid XCR0: the processor has none. */
static int set_fpu(int vcpu_fd, const struct cpu_fpu *from)
{
    const struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs = {{.xcr = 0, .value = from->xcr0}}};
    if (from->xcr0 && ioctl(vcpu_fd, KVM_SET_XCRS, &xcrs) < 0)
        return -1;
    return ioctl(vcpu_fd, KVM_SET_XSAVE, from->xsave);
}

static int get_debug(int vcpu_fd, struct cpu_debug *to)
{
    struct kvm_debugregs registers;
    if (ioctl(vcpu_fd, KVM_GET_DEBUGREGS, &registers) < 0)
        return -1;
    memcpy(to->dr, registers.db, sizeof to->dr);
    to->dr6 = registers.dr6;
    to->dr7 = registers.dr7;
    return 0;
}

static int set_debug(int vcpu_fd, const struct cpu_debug *from)
{
    struct kvm_debugregs registers = {.dr6 = from->dr6, .dr7 = from->dr7};
    memcpy(registers.db, from->dr, sizeof registers.db);
    return ioctl(vcpu_fd, KVM_SET_DEBUGREGS, &registers);
}

/* ---- the whole state */

static int get_system(int vcpu_fd, struct cpu_system *to)
{
    struct kvm_sregs sregs;
    if (ioctl(vcpu_fd, KVM_GET_SREGS, &sregs) < 0)
        return -1;
    system_from(&sregs, to);
    return 0;
}

static int get_general(int vcpu_fd, struct cpu_general *to)
{
    struct kvm_regs regs;
    if (ioctl(vcpu_fd, KVM_GET_REGS, &regs) < 0)
        return -1;
    general_from(&regs, to);
    return 0;
}

int kvm_cpu_state_get(int vcpu_fd, uint32_t parts, struct cpu_state *state)
{
    state->known = 0;
    if ((parts & CPU_SYSTEM && get_system(vcpu_fd, &state->system) < 0) ||
        (parts & CPU_MSRS && get_msrs(vcpu_fd, &state->msrs) < 0) ||
        (parts & CPU_DEBUG && get_debug(vcpu_fd, &state->debug) < 0) ||
        (parts & CPU_FPU && get_fpu(vcpu_fd, &state->fpu) < 0) ||
        (parts & CPU_GENERAL && get_general(vcpu_fd, &state->general) < 0))
        return -errno;
    state->known = parts & CPU_ALL;
    return 0;
}

static int set_system(int vcpu_fd, const struct cpu_system *from)
{
    struct kvm_sregs sregs;
    kvm_sregs_of(from, &sregs);
    return ioctl(vcpu_fd, KVM_SET_SREGS, &sregs);
}

static int set_general(int vcpu_fd, const struct cpu_general *from)
{
    struct kvm_regs regs;
    kvm_regs_of(from, &regs);
    return ioctl(vcpu_fd, KVM_SET_REGS, &regs);
}

int kvm_cpu_state_set(int vcpu_fd, uint32_t parts, const struct cpu_state *state, const char **name)
{
    parts &= state->known;
    /* The system registers come first: they set the mode, which decides what else is valid. */
    if ((parts & CPU_SYSTEM && (*name = "SET_SREGS", set_system(vcpu_fd, &state->system) < 0)) ||
        (parts & CPU_FPU && (*name = "SET_XSAVE", set_fpu(vcpu_fd, &state->fpu) < 0)) ||
        (parts & CPU_DEBUG && (*name = "SET_DEBUGREGS", set_debug(vcpu_fd, &state->debug) < 0)) ||
        (parts & CPU_MSRS && (*name = "SET_MSRS", set_msrs(vcpu_fd, &state->msrs) < 0)) ||
        (parts & CPU_GENERAL && (*name = "SET_REGS", set_general(vcpu_fd, &state->general) < 0)))
        return -errno;
    return 0;
}
