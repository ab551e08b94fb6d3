/* Decodes one instruction; decode.h has the rule. Intel SDM volume 2, chapter 2. */
#include "decode.h"

/* Bytes past the end read as zero and are counted, so that one check at the end detects them. */
struct cursor {
    const uint8_t *bytes;
    uint32_t available;
    uint32_t at;
};

enum shape { OTHER, NO_OPERAND, MODRM, MODRM_REGISTERS, IMMEDIATE8, IMMEDIATE16 };

static uint8_t next(struct cursor *c)
{
    uint32_t at = c->at++;
    return at < c->available ? c->bytes[at] : 0;
}

static uint16_t next16(struct cursor *c)
{
    uint16_t low = next(c);
    return (uint16_t)(low | next(c) << 8);
}

static int32_t next32(struct cursor *c)
{
    uint32_t low = next16(c);
    return (int32_t)(low | (uint32_t)next16(c) << 16);
}

static enum shape shape_of(uint32_t opcode)
{
    switch (opcode) {
    case 0x6c ... 0x6f: /* INS, OUTS */
    case 0xcb:          /* RET far */
    case 0xcc:          /* INT3 */
    case 0xcf:          /* IRET */
    case 0xec ... 0xef: /* IN, OUT with DX */
    case 0xf4:          /* HLT */
    case 0xfa:          /* CLI */
    case 0xfb:          /* STI */
    case 0x0f06:        /* CLTS */
    case 0x0f07:        /* SYSRET */
    case 0x0f08:        /* INVD */
    case 0x0f09:        /* WBINVD */
    case 0x0f30:        /* WRMSR */
    case 0x0f31:        /* RDTSC */
    case 0x0f32:        /* RDMSR */
    case 0x0f33:        /* RDPMC */
    case 0x0f35:        /* SYSEXIT */
    case 0x0fa1:        /* POP FS */
    case 0x0fa9:        /* POP GS */
    case 0x0faa:        /* RSM */
        return NO_OPERAND;
    case 0x8e:                  /* MOV to a segment register */
    case 0xff:                  /* /3 CALL far, /5 JMP far */
    case 0x0f00:                /* SLDT, STR, LLDT, LTR */
    case 0x0f01:                /* SGDT, SIDT, LGDT, LIDT, SMSW, LMSW, INVLPG and many register forms */
    case 0x0f78:                /* VMREAD */
    case 0x0f79:                /* VMWRITE */
    case 0x0fb2:                /* LSS */
    case 0x0fb4:                /* LFS */
    case 0x0fb5:                /* LGS */
    case 0x0fc7:                /* XRSTORS, XSAVES, VMX pointers */
    case 0x0f3880 ... 0x0f3882: /* INVEPT, INVVPID, INVPCID */
        return MODRM;
    case 0x0f20 ... 0x0f23: /* MOV of CR and DR */
        return MODRM_REGISTERS;
    case 0xcd:          /* INT */
    case 0xe4 ... 0xe7: /* IN, OUT with a number */
        return IMMEDIATE8;
    case 0xca: /* RET far */
        return IMMEDIATE16;
    default:
        return OTHER;
    }
}

/* Returns the first byte that is not a prefix. A REX prefix counts only directly before the opcode. */
static uint8_t decode_prefixes(struct cursor *c, struct instruction *in, uint8_t *rex)
{
    uint8_t byte = next(c);
    for (; c->at <= INSTRUCTION_MAX; byte = next(c)) {
        bool is_rex = (byte & 0xf0) == 0x40;
        switch (byte) {
        case 0xf0:
            in->lock = true;
            break;
        case 0xf2:
        case 0xf3:
            in->repeat = true;
            break;
        case 0x66:
            in->operand16 = true;
            break;
        case 0x67:
            in->address32 = true;
            break;
        case 0x64:
            in->segment = SEG_FS;
            break;
        case 0x65:
            in->segment = SEG_GS;
            break;
        case 0x26:
        case 0x2e:
        case 0x36:
        case 0x3e:
            break;
        default:
            if (!is_rex)
                return byte;
        }
        *rex = is_rex ? byte : 0;
    }
    return byte;
}

static void decode_modrm(struct cursor *c, struct instruction *in, uint8_t rex, bool registers)
{
    uint8_t r = rex & 4 ? 8 : 0, x = rex & 2 ? 8 : 0, b = rex & 1 ? 8 : 0;
    uint8_t byte = next(c);
    in->mod = registers ? 3 : byte >> 6; /* MOV of CR and DR treats any mod as 3 */
    in->digit = byte >> 3 & 7;
    in->reg = in->digit | r;
    in->rm = (byte & 7) | b;
    if (in->mod == 3)
        return;
    bool wants_32 = in->mod == 2;
    if ((byte & 7) == 4) {
        uint8_t sib = next(c);
        in->scale = sib >> 6;
        in->index = (sib >> 3 & 7) | x;
        if (in->index == GPR_RSP)
            in->index = NO_REGISTER;
        in->base = (sib & 7) | b;
        if ((sib & 7) == 5 && in->mod == 0) {
            in->base = NO_REGISTER;
            wants_32 = true;
        }
    } else if ((byte & 7) == 5 && in->mod == 0) {
        in->rip_relative = true;
        wants_32 = true;
    } else {
        in->base = in->rm;
    }
    if (wants_32)
        in->displacement = next32(c);
    else if (in->mod == 1)
        in->displacement = (int8_t)next(c);
}

enum decoding decode(const uint8_t *bytes, uint32_t available, struct instruction *in)
{
    struct cursor c = {bytes, available, 0};
    uint8_t rex = 0;
    *in = (struct instruction){.segment = NO_REGISTER, .base = NO_REGISTER, .index = NO_REGISTER};
    in->opcode = decode_prefixes(&c, in, &rex);
    if (in->opcode == 0x0f)
        in->opcode = 0x0f00u | next(&c);
    if (in->opcode == 0x0f38)
        in->opcode = 0x0f3800u | next(&c);
    in->wide = rex & 8;
    enum shape shape = shape_of(in->opcode);
    if (shape == MODRM || shape == MODRM_REGISTERS)
        decode_modrm(&c, in, rex, shape == MODRM_REGISTERS);
    else if (shape == IMMEDIATE8)
        in->immediate = next(&c);
    else if (shape == IMMEDIATE16)
        in->immediate = next16(&c);
    if (c.at > INSTRUCTION_MAX)
        return DECODE_LONG;
    if (c.at > available)
        return DECODE_MORE;
    in->length = (uint8_t)c.at;
    return shape == OTHER ? DECODED_OTHER : DECODED;
}

uint32_t operand_bytes(const struct instruction *in)
{
    return in->wide ? 8 : in->operand16 ? 2 : 4;
}

uint64_t operand_address(const struct instruction *in, const struct cpu *cpu,
                         const struct system_state *state, bool *through_stack)
{
    uint64_t address = (uint64_t)(int64_t)in->displacement;
    if (in->rip_relative)
        address += cpu->rip + in->length; /* no instruction here has an immediate after its displacement */
    if (in->base != NO_REGISTER)
        address += cpu->gpr[in->base];
    if (in->index != NO_REGISTER)
        address += cpu->gpr[in->index] << in->scale;
    if (in->address32)
        address = (uint32_t)address;
    *through_stack = in->segment == NO_REGISTER && (in->base == GPR_RSP || in->base == GPR_RBP);
    if (in->segment == SEG_FS)
        address += state->fs_base;
    else if (in->segment == SEG_GS)
        address += state->gs_base;
    return address;
}
