/*
 * Dispatches by opcode, and emulates the instructions that neither access registers of ring 0
 * (emulate_registers.c) nor change CS (emulate_far.c). emulate.h has the rule.
 *
 * It uses a switch and not a table of functions, because the program relocates itself, and a table
 * of pointers would have to be relocated too.
 */
#include "emulate.h"

#include <string.h>

#include "emulate_step.h"

enum emulation fault_of(struct step *s, enum vector vector, uint32_t error)
{
    raise_error(s->fault, vector, error);
    return GUEST_FAULT;
}

bool memory_operand_read(struct step *s, void *to, uint32_t bytes)
{
    bool stack;
    uint64_t address = operand_address(&s->in, s->cpu, s->state, &stack);
    return guest_read(s->memory, address, to, bytes, stack ? THROUGH_STACK : THROUGH_DATA, s->fault);
}

static bool memory_operand_write(struct step *s, const void *from, uint32_t bytes)
{
    bool stack;
    uint64_t address = operand_address(&s->in, s->cpu, s->state, &stack);
    return guest_write(s->memory, address, from, bytes, stack ? THROUGH_STACK : THROUGH_DATA, s->fault);
}

bool operand_read(struct step *s, void *to, uint32_t bytes)
{
    if (s->in.mod != 3)
        return memory_operand_read(s, to, bytes);
    memcpy(to, &s->cpu->gpr[s->in.rm], bytes);
    return true;
}

void register_write(struct cpu *cpu, uint32_t number, uint64_t value, uint32_t bytes)
{
    uint64_t *gpr = &cpu->gpr[number];
    if (bytes == 8)
        *gpr = value;
    else if (bytes == 4)
        *gpr = (uint32_t)value;
    else
        *gpr = (*gpr & ~0xffffULL) | (value & 0xffff);
}

bool segment_load(struct step *s, enum segment segment, uint16_t selector)
{
    struct descriptor d;
    selector = selector_of_guest(s->state, selector);
    if (!data_segment_check(s->memory, s->state, segment, selector, &d, s->fault))
        return false;
    segment_commit(s->state, segment, selector, &d);
    return true;
}

/* ---- ports ---- */

static enum emulation port_dx(struct step *s, struct emulated *out)
{
    out->port = (uint16_t)s->cpu->gpr[GPR_RDX];
    out->value = (uint32_t)s->cpu->gpr[GPR_RAX];
    bool out_32 = s->in.opcode == 0xef && (!s->in.operand16 || s->in.wide);
    return out_32 ? EMULATED_OUT : BAD_PORT;
}

static enum emulation port_immediate(struct step *s, struct emulated *out)
{
    out->port = s->in.immediate;
    return BAD_PORT;
}

/* ---- system tables: 0F 00 and 0F 01 ---- */

/* STR, SLDT and SMSW write 16 bits to memory, but the operand's size to a register. */
static enum emulation store_word(struct step *s, uint64_t value)
{
    if (s->in.mod == 3)
        register_write(s->cpu, s->in.rm, value, operand_bytes(&s->in));
    else if (!memory_operand_write(s, &value, 2))
        return GUEST_FAULT;
    return EMULATED;
}

static enum emulation load_system_segment(struct step *s, struct system_segment *segment, uint32_t type)
{
    uint16_t selector;
    if (!operand_read(s, &selector, 2))
        return GUEST_FAULT;
    if (selector_is_null(selector)) {
        if (type == SYSTEM_TYPE_TSS_AVAILABLE)
            return fault_of(s, VECTOR_GP, 0);
        *segment = (struct system_segment){.selector = selector};
        return EMULATED;
    }
    return system_segment_load(s->memory, s->state, selector, type, segment, s->fault) ? EMULATED
                                                                                       : GUEST_FAULT;
}

static enum emulation emulate_0f00(struct step *s)
{
    switch (s->in.digit) {
    case 0:
        return store_word(s, s->state->ldtr.selector);
    case 1:
        return store_word(s, s->state->tr.selector);
    case 2:
        return load_system_segment(s, &s->state->ldtr, SYSTEM_TYPE_LDT);
    case 3:
        return load_system_segment(s, &s->state->tr, SYSTEM_TYPE_TSS_AVAILABLE);
    default: /* VERR, VERW */
        return NOT_PRIVILEGED;
    }
}

/* SGDT, SIDT, LGDT and LIDT transfer ten bytes in 64-bit mode, whatever the operand's size is. */
static enum emulation store_table(struct step *s, const struct table_register *table)
{
    uint8_t image[10];
    memcpy(image, &table->limit, 2);
    memcpy(image + 2, &table->base, 8);
    return memory_operand_write(s, image, sizeof image) ? EMULATED : GUEST_FAULT;
}

static enum emulation load_table(struct step *s, struct table_register *table)
{
    uint8_t image[10];
    struct table_register loaded;
    if (!memory_operand_read(s, image, sizeof image))
        return GUEST_FAULT;
    memcpy(&loaded.limit, image, 2);
    memcpy(&loaded.base, image + 2, 8);
    if (!address_is_canonical(loaded.base))
        return fault_of(s, VECTOR_GP, 0);
    *table = loaded;
    return EMULATED;
}

/* LMSW writes PE, MP, EM and TS, and cannot clear PE. */
static enum emulation emulate_lmsw(struct step *s)
{
    uint16_t word;
    if (!operand_read(s, &word, 2))
        return GUEST_FAULT;
    return emulate_write_cr0(s, (s->state->cr0 & ~0xeULL) | (word & 0xfu));
}

static enum emulation emulate_swapgs(struct step *s)
{
    uint64_t base = s->state->gs_base;
    s->state->gs_base = s->state->kernel_gs_base;
    s->state->kernel_gs_base = base;
    s->state->bases_changed = true;
    return EMULATED;
}

/* 0F 01 C0 to FF, except SMSW and LMSW. Each ModRM byte is an instruction of its own. */
static enum emulation emulate_0f01_register(struct step *s, uint8_t modrm)
{
    if (s->in.repeat || s->in.operand16)
        return NOT_PRIVILEGED; /* another instruction, or an invalid one: #UD */
    switch (modrm) {
    case 0xd1:
        return emulate_xsetbv(s);
    case 0xf8:
        return emulate_swapgs(s);
    case 0xc1 ... 0xc4: /* VMCALL VMLAUNCH VMRESUME VMXOFF */
    case 0xc8 ... 0xc9: /* MONITOR MWAIT */
    case 0xca ... 0xcb: /* CLAC STAC */
    case 0xd8 ... 0xdf: /* SVM, VMMCALL */
    case 0xfa ... 0xfb: /* MONITORX MWAITX */
        return UNSUPPORTED;
    default:
        return NOT_PRIVILEGED;
    }
}

static enum emulation emulate_0f01(struct step *s)
{
    bool registers = s->in.mod == 3;
    if (s->in.digit == 4)
        return store_word(s, control_register_0(s->state));
    if (s->in.digit == 6)
        return emulate_lmsw(s);
    if (registers)
        return emulate_0f01_register(s, (uint8_t)(0xc0 | s->in.digit << 3 | (s->in.rm & 7)));
    switch (s->in.digit) {
    case 0:
        return store_table(s, &s->state->gdtr);
    case 1:
        return store_table(s, &s->state->idtr);
    case 2:
        return load_table(s, &s->state->gdtr);
    case 3:
        return load_table(s, &s->state->idtr);
    case 7: /* INVLPG: the page tables never change, so no translation is stale */
        return EMULATED;
    default: /* 5: RSTORSSP, which needs CR4.CET */
        return NOT_PRIVILEGED;
    }
}

/* 0F C7. CMPXCHG16B, RDRAND and RDSEED have this opcode too, and are ordinary instructions. */
static enum emulation emulate_0fc7(struct step *s)
{
    bool privileged = s->in.mod != 3 && (s->in.digit == 3 || s->in.digit >= 5);
    return privileged ? UNSUPPORTED : NOT_PRIVILEGED; /* XRSTORS XSAVES VMPTRLD VMCLEAR VMXON VMPTRST */
}

/* ---- segment registers ---- */

static enum emulation emulate_mov_segment(struct step *s)
{
    uint16_t selector;
    if (s->in.digit == SEG_CS || s->in.digit >= SEG_COUNT)
        return fault_of(s, VECTOR_UD, 0);
    if (!operand_read(s, &selector, 2) || !segment_load(s, s->in.digit, selector))
        return GUEST_FAULT;
    return EMULATED;
}

static enum emulation emulate_pop_segment(struct step *s, enum segment segment)
{
    uint32_t bytes = s->in.operand16 && !s->in.wide ? 2 : 8; /* 64-bit mode has no 32-bit POP */
    uint64_t value = 0;
    if (!guest_read(s->memory, s->cpu->gpr[GPR_RSP], &value, bytes, THROUGH_STACK, s->fault) ||
        !segment_load(s, segment, (uint16_t)value))
        return GUEST_FAULT;
    s->cpu->gpr[GPR_RSP] += bytes;
    return EMULATED;
}

static enum emulation emulate_load_far_pointer(struct step *s, enum segment segment)
{
    uint32_t bytes = operand_bytes(&s->in);
    uint8_t pointer[10];
    uint64_t offset = 0;
    uint16_t selector;
    if (s->in.mod == 3)
        return NOT_PRIVILEGED; /* #UD */
    if (!memory_operand_read(s, pointer, bytes + 2))
        return GUEST_FAULT;
    memcpy(&offset, pointer, bytes);
    memcpy(&selector, pointer + bytes, sizeof selector);
    if (!segment_load(s, segment, selector))
        return GUEST_FAULT;
    register_write(s->cpu, s->in.reg, offset, bytes);
    return EMULATED;
}

/* ---- the rest ---- */

static enum emulation software_interrupt(struct step *s, uint32_t vector)
{
    *s->fault = (struct exception){.vector = (uint8_t)vector, .software = true, .length = s->in.length};
    return GUEST_INTERRUPT;
}

static enum emulation set_interrupts(struct step *s, bool on)
{
    s->state->interrupts = on;
    return EMULATED;
}

static enum emulation dispatch(struct step *s, struct emulated *out)
{
    switch (s->in.opcode) {
    case 0xec ... 0xef:
    case 0x6c ... 0x6f:
        return port_dx(s, out);
    case 0xe4 ... 0xe7:
        return port_immediate(s, out);
    case 0x8e:
        return emulate_mov_segment(s);
    case 0xca:
    case 0xcb:
        return emulate_far_return(s);
    case 0xcc:
        return software_interrupt(s, VECTOR_BP);
    case 0xcd:
        return software_interrupt(s, s->in.immediate);
    case 0xcf:
        return emulate_interrupt_return(s);
    case 0xf4:
        return HALTED;
    case 0xfa:
    case 0xfb:
        return set_interrupts(s, s->in.opcode == 0xfb);
    case 0xff:
        return s->in.digit == 3 || s->in.digit == 5 ? emulate_far_branch(s, s->in.digit == 3)
                                                    : NOT_PRIVILEGED;
    case 0x0f00:
        return emulate_0f00(s);
    case 0x0f01:
        return emulate_0f01(s);
    case 0x0f06: /* CLTS: TS is never set */
    case 0x0f08: /* INVD */
    case 0x0f09: /* WBINVD */
        return EMULATED;
    case 0x0f20:
    case 0x0f22:
        return emulate_control_register(s);
    case 0x0f21:
    case 0x0f23:
        return emulate_debug_register(s);
    case 0x0f30:
        return emulate_wrmsr(s);
    case 0x0f32:
        return emulate_rdmsr(s);
    case 0x0f33: /* RDPMC: a guest has no counters */
        return fault_of(s, VECTOR_GP, 0);
    case 0x0fa1:
        return emulate_pop_segment(s, SEG_FS);
    case 0x0fa9:
        return emulate_pop_segment(s, SEG_GS);
    case 0x0fb2:
        return emulate_load_far_pointer(s, SEG_SS);
    case 0x0fb4:
        return emulate_load_far_pointer(s, SEG_FS);
    case 0x0fb5:
        return emulate_load_far_pointer(s, SEG_GS);
    case 0x0fc7:
        return emulate_0fc7(s);
    default: /* decoded but not emulated: SYSRET RDTSC SYSEXIT RSM VMREAD VMWRITE INVPCID ... */
        return UNSUPPORTED;
    }
}

/* Fetches and decodes. Returns EMULATED if there is an instruction to dispatch. */
static enum emulation fetch(struct step *s, struct emulated *out)
{
    uint64_t rip = s->cpu->rip;
    if (!address_is_canonical(rip))
        return fault_of(s, VECTOR_GP, 0);
    uint32_t available = guest_fetch(s->memory, rip, out->bytes, INSTRUCTION_MAX);
    switch (decode(out->bytes, available, &s->in)) {
    case DECODED:
        if (s->in.lock)
            return NOT_PRIVILEGED; /* LOCK before any of these instructions is the reason for the #UD */
        out->length = s->in.length;
        return EMULATED;
    case DECODE_MORE:
        raise_page_fault(s->memory, s->fault, rip + available, GUEST_READABLE);
        return GUEST_FAULT;
    case DECODE_LONG:
        return fault_of(s, VECTOR_GP, 0);
    default:
        return NOT_PRIVILEGED;
    }
}

enum emulation emulate(const struct guest_memory *memory, struct system_state *state, struct cpu *cpu,
                       struct emulated *out)
{
    memset(out, 0, sizeof *out);
    struct step s = {.memory = memory, .state = state, .cpu = cpu, .fault = &out->exception};
    enum emulation answer = fetch(&s, out);
    if (answer != EMULATED)
        return answer;
    s.rip = cpu->rip + out->length;
    s.rflags = cpu->rflags & ~RFLAGS_RF; /* a completed instruction clears RF */
    answer = dispatch(&s, out);
    if (answer == EMULATED || answer == HALTED) {
        cpu->rip = s.rip;
        cpu->rflags = s.rflags;
    } else if (answer == NOT_PRIVILEGED) {
        out->length = 0;
    }
    return answer;
}
