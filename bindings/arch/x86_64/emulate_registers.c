/*
 * Control registers, debug registers, model-specific registers and XCR0, as shadows.
 *
 * The rule: if a bit would change how the guest's own code runs, and ring 3 cannot provide that, a
 * write of it is UNSUPPORTED. The emulator never claims an effect that it does not have. A bit that
 * has no effect on a ring-0 program without user pages, interrupts or tasks is stored and read
 * back. What hardware refuses, the emulator refuses too. Intel SDM volume 3, 2.5, 2.6 and chapter
 * 17; volume 4 for the MSRs.
 */
#include "emulate_step.h"

#define CR0_PE 0x1ULL
#define CR0_MP 0x2ULL
#define CR0_EM 0x4ULL
#define CR0_TS 0x8ULL
#define CR0_ET 0x10ULL /* always reads as set */
#define CR0_NE 0x20ULL
#define CR0_WP 0x10000ULL
#define CR0_AM 0x40000ULL
#define CR0_NW 0x20000000ULL
#define CR0_CD 0x40000000ULL
#define CR0_PG 0x80000000ULL
#define CR0_DEFINED                                                                                          \
    (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG)
/*
 * Bits that must not change: paging stays on, read-only pages stay so for ring 0, and the FPU never
 * raises #NM.
 */
#define CR0_CONSTANT (CR0_PE | CR0_EM | CR0_TS | CR0_WP | CR0_PG)

#define CR4_DE  0x8ULL
#define CR4_PAE 0x20ULL
/*
 * VME PVI TSD PSE MCE PGE PCE UMIP FSGSBASE OSXSAVE SMEP SMAP, which a guest may write: they
 * concern user mode, 32-bit mode or caches of translations, or the host has turned them on already.
 */
#define CR4_FREE                                                                                             \
    (0x1ULL | 0x2ULL | 0x4ULL | CR4_DE | 0x10ULL | 0x40ULL | 0x80ULL | 0x100ULL | 0x800ULL | 0x10000ULL |    \
     0x40000ULL | 0x100000ULL | 0x200000ULL)
#define CR4_LA57 0x1000ULL
/*
 * OSFXSR OSXMMEXCPT VMXE SMXE PCIDE KL PKE CET PKS UINTR: they must not change, because a shadow
 * has no effect.
 */
#define CR4_CONSTANT                                                                                         \
    (0x200ULL | 0x400ULL | 0x2000ULL | 0x4000ULL | 0x20000ULL | 0x80000ULL | 0x400000ULL | 0x800000ULL |     \
     0x1000000ULL | 0x2000000ULL)

#define DR6_WRITABLE 0xe00fULL
#define DR6_FIXED    0xffff0ff0ULL
#define DR7_ENABLES  0x20ffULL /* L0 to G3, and GD */
#define DR7_WRITABLE 0xffff2bffULL
#define DR7_FIXED    0x400ULL

#define EFER_SCE 0x1ULL
#define EFER_LME 0x100ULL
#define EFER_LMA 0x400ULL
#define EFER_NXE 0x800ULL

#define MSR_TSC            0x10u
#define MSR_APIC_BASE      0x1bu
#define MSR_PAT            0x277u
#define MSR_EFER           0xc0000080u
#define MSR_FS_BASE        0xc0000100u
#define MSR_GS_BASE        0xc0000101u
#define MSR_KERNEL_GS_BASE 0xc0000102u
#define PAT_DEFAULT        0x0007040600070406ULL

#define XCR0_X87    0x1ULL
#define XCR0_SSE    0x2ULL
#define XCR0_AVX    0x4ULL
#define XCR0_MPX    0x18ULL
#define XCR0_AVX512 0xe0ULL
#define XCR0_AMX    0x60000ULL

void system_state_init(struct system_state *state, uint64_t host_xcr0)
{
    *state = (struct system_state){
        .gdtr = {HVT_GDT_GPA, HVT_GDT_LIMIT},
        .selector = {HVT_SELECTOR_DS, HVT_SELECTOR_CS, HVT_SELECTOR_DS, HVT_SELECTOR_DS, HVT_SELECTOR_DS,
                     HVT_SELECTOR_DS},
        .cr0 = HVT_CR0,
        .cr3 = HVT_PML4_GPA,
        .cr4 = HVT_CR4,
        .dr6 = DR6_FIXED,
        .dr7 = DR7_FIXED,
        .efer = HVT_EFER,
        .xcr0 = XCR0_X87,
        .host_xcr0 = host_xcr0,
    };
}

uint64_t control_register_0(const struct system_state *state)
{
    return state->cr0 | CR0_ET;
}

enum emulation emulate_write_cr0(struct step *s, uint64_t value)
{
    bool paging_alone = value & CR0_PG && !(value & CR0_PE);
    bool write_through_alone = value & CR0_NW && !(value & CR0_CD);
    if (value >> 32 || paging_alone || write_through_alone)
        return fault_of(s, VECTOR_GP, 0);
    if ((value ^ HVT_CR0) & CR0_CONSTANT)
        return UNSUPPORTED;
    s->state->cr0 = value & CR0_DEFINED; /* hardware ignores writes to the reserved bits below 32 */
    return EMULATED;
}

static enum emulation write_cr4(struct step *s, uint64_t value)
{
    /* In 64-bit mode PAE cannot be cleared and LA57 cannot change. */
    if (!(value & CR4_PAE) || value & CR4_LA57 || value & ~(CR4_FREE | CR4_PAE | CR4_CONSTANT))
        return fault_of(s, VECTOR_GP, 0);
    if ((value ^ HVT_CR4) & CR4_CONSTANT)
        return UNSUPPORTED;
    s->state->cr4 = value;
    return EMULATED;
}

static enum emulation write_control_register(struct step *s, uint32_t number, uint64_t value)
{
    struct system_state *state = s->state;
    switch (number) {
    case 0:
        return emulate_write_cr0(s, value);
    case 2:
        state->cr2 = value;
        return EMULATED;
    case 3: /* with the same tables it is only a flush of the TLB */
        return value == state->cr3 ? EMULATED : UNSUPPORTED;
    case 4:
        return write_cr4(s, value);
    default: /* 8 */
        if (value > 15)
            return fault_of(s, VECTOR_GP, 0);
        state->cr8 = value;
        return EMULATED;
    }
}

static uint64_t read_control_register(const struct system_state *state, uint32_t number)
{
    switch (number) {
    case 0:
        return control_register_0(state);
    case 2:
        return state->cr2;
    case 3:
        return state->cr3;
    case 4:
        return state->cr4;
    default:
        return state->cr8;
    }
}

enum emulation emulate_control_register(struct step *s)
{
    uint32_t number = s->in.reg;
    if (number != 0 && number != 2 && number != 3 && number != 4 && number != 8)
        return fault_of(s, VECTOR_UD, 0);
    if (s->in.opcode == 0x0f22)
        return write_control_register(s, number, s->cpu->gpr[s->in.rm]);
    s->cpu->gpr[s->in.rm] = read_control_register(s->state, number);
    return EMULATED;
}

enum emulation emulate_debug_register(struct step *s)
{
    struct system_state *state = s->state;
    uint32_t number = s->in.reg;
    bool alias = number == 4 || number == 5;
    if (number > 7 || (alias && state->cr4 & CR4_DE))
        return fault_of(s, VECTOR_UD, 0);
    if (alias)
        number += 2;
    uint64_t *shadow = number < 4 ? &state->dr[number] : number == 6 ? &state->dr6 : &state->dr7;
    uint64_t *gpr = &s->cpu->gpr[s->in.rm];
    if (s->in.opcode == 0x0f21) {
        *gpr = *shadow;
        return EMULATED;
    }
    if (number >= 6 && *gpr >> 32)
        return fault_of(s, VECTOR_GP, 0);
    if (number == 7 && *gpr & DR7_ENABLES)
        return UNSUPPORTED; /* the host does not give a guest breakpoints */
    if (number == 6)
        *shadow = (*gpr & DR6_WRITABLE) | DR6_FIXED;
    else if (number == 7)
        *shadow = (*gpr & DR7_WRITABLE) | DR7_FIXED;
    else
        *shadow = *gpr;
    return EMULATED;
}

static void write_edx_eax(struct cpu *cpu, uint64_t value)
{
    cpu->gpr[GPR_RAX] = (uint32_t)value;
    cpu->gpr[GPR_RDX] = value >> 32;
}

static uint64_t read_edx_eax(const struct cpu *cpu)
{
    return (uint32_t)cpu->gpr[GPR_RAX] | cpu->gpr[GPR_RDX] << 32;
}

enum emulation emulate_rdmsr(struct step *s)
{
    const struct system_state *state = s->state;
    uint64_t value;
    switch ((uint32_t)s->cpu->gpr[GPR_RCX]) {
    case MSR_TSC:
        value = __builtin_ia32_rdtsc(); /* the guest's own RDTSC reads the same counter */
        break;
    case MSR_APIC_BASE:
        value = 0;
        break;
    case MSR_PAT:
        value = PAT_DEFAULT;
        break;
    case MSR_EFER:
        value = state->efer;
        break;
    case MSR_FS_BASE:
        value = state->fs_base;
        break;
    case MSR_GS_BASE:
        value = state->gs_base;
        break;
    case MSR_KERNEL_GS_BASE:
        value = state->kernel_gs_base;
        break;
    default:
        return fault_of(s, VECTOR_GP, 0);
    }
    write_edx_eax(s->cpu, value);
    return EMULATED;
}

/*
 * SCE and NXE are stored without effect: SYSCALL has no entry point, because its MSRs cannot be
 * written, and no page table of the contract has an NX bit. LME cannot change while paging is on,
 * LMA is read-only, and the other bits are reserved.
 */
static enum emulation write_efer(struct step *s, uint64_t value)
{
    struct system_state *state = s->state;
    if (value & ~(EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE) || !(value & EFER_LME))
        return fault_of(s, VECTOR_GP, 0);
    state->efer = value | EFER_LMA;
    return EMULATED;
}

/* For a value that can be read but not changed: to write the same value is a no-op. */
static enum emulation write_constant(struct step *s, uint64_t constant, uint64_t value)
{
    return value == constant ? EMULATED : fault_of(s, VECTOR_GP, 0);
}

static enum emulation write_base(struct step *s, uint64_t *base, uint64_t value)
{
    if (!address_is_canonical(value))
        return fault_of(s, VECTOR_GP, 0);
    *base = value;
    if (base != &s->state->kernel_gs_base)
        s->state->bases_changed = true;
    return EMULATED;
}

enum emulation emulate_wrmsr(struct step *s)
{
    struct system_state *state = s->state;
    uint64_t value = read_edx_eax(s->cpu);
    switch ((uint32_t)s->cpu->gpr[GPR_RCX]) {
    case MSR_APIC_BASE:
        return write_constant(s, 0, value);
    case MSR_PAT:
        return write_constant(s, PAT_DEFAULT, value);
    case MSR_EFER:
        return write_efer(s, value);
    case MSR_FS_BASE:
        return write_base(s, &state->fs_base, value);
    case MSR_GS_BASE:
        return write_base(s, &state->gs_base, value);
    case MSR_KERNEL_GS_BASE:
        return write_base(s, &state->kernel_gs_base, value);
    default:
        return fault_of(s, VECTOR_GP, 0);
    }
}

static bool is_all_or_none(uint64_t value, uint64_t bits)
{
    return (value & bits) == 0 || (value & bits) == bits;
}

/* Intel SDM volume 1, 13.3. */
static bool xcr0_is_valid(uint64_t value, uint64_t host)
{
    if (!(value & XCR0_X87) || value & ~host)
        return false;
    if (value & XCR0_AVX && !(value & XCR0_SSE))
        return false;
    if (value & XCR0_AVX512 && !(value & XCR0_AVX))
        return false;
    return is_all_or_none(value, XCR0_MPX) && is_all_or_none(value, XCR0_AVX512) &&
           is_all_or_none(value, XCR0_AMX);
}

/* CR4.OSXSAVE is not checked: CPUID does not trap, and reports to the guest that it is on. */
enum emulation emulate_xsetbv(struct step *s)
{
    uint64_t value = read_edx_eax(s->cpu);
    if ((uint32_t)s->cpu->gpr[GPR_RCX] != 0 || !xcr0_is_valid(value, s->state->host_xcr0))
        return fault_of(s, VECTOR_GP, 0);
    s->state->xcr0 = value;
    return EMULATED;
}
