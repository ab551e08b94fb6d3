/*
 * Ring-0 instructions and exceptions under libFuzzer: the input is a guest that tries to break out.
 *
 *   input: 40 words of 3 bytes (registers, tables, bases, selectors: see word()), 8 bytes that choose the IDT
 *          gates to make valid, then the guest's writable memory, from WINDOW on
 *
 * Memory ends at a page without rights and is read-only below WINDOW, so a stray access raises
 * SIGSEGV. The guest runs as in the sandbox program: each instruction is emulated or its fault is
 * delivered, at most STEPS times.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "decode.h"
#include "emulate.h"
#include "fault.h"
#include "must.h"

#define M            0x104000u
#define TEXT         0x100000u /* readable, and the last memory before... */
#define WINDOW       0x102000u /* ...what is writable */
#define GUARD        0x10000u
#define STEPS        16u
#define WORD_BYTES   3u
#define WORDS        40u
#define HEADER_BYTES (WORDS * WORD_BYTES + 8u)
#define HOST_XCR0    0x2e7u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct guest_memory memory;

static void set_up(void)
{
    uint8_t *mapping = mmap(NULL, M + 2 * GUARD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(mapping != MAP_FAILED);
    memory.hva = mapping + GUARD;
    memory.bytes = M;
    memory.ranges[0] = (struct guest_range){TEXT, WINDOW, SEGMENT_EXEC};
    memory.range_count = 1;
    MUST(mprotect(memory.hva + HVT_LOW_UNMAPPED_BYTES, WINDOW - HVT_LOW_UNMAPPED_BYTES, PROT_READ) == 0);
    MUST(mprotect(memory.hva + WINDOW, M - WINDOW, PROT_READ | PROT_WRITE) == 0);
}

/* A value worth trying, made from three bytes: mostly in the window, or at an edge. */
static uint64_t word(const uint8_t *at)
{
    uint64_t low = at[1] | (uint64_t)at[2] << 8;
    switch (at[0] % 12) {
    case 0:
        return low;
    case 1:
        return M - (low & 0xff);
    case 2:
        return UINT64_MAX - (low & 0xff);
    case 3:
        return 0x800000000000 - (low & 0xff);
    case 4:
        return 0xffff800000000000 + low;
    case 5:
        return WINDOW - (low & 0xff);
    case 6:
        return low << 48 | low;
    case 7:
        return 0x80000021 ^ low;
    default:
        return WINDOW + low % (M - WINDOW);
    }
}

/* What a base register can hold: hardware accepts no other address. */
static uint64_t canonical(uint64_t address)
{
    return address & 1ULL << 47 ? address | 0xffff000000000000 : address & 0xffffffffffff;
}

static void put_state(struct system_state *state, struct cpu *cpu, const uint8_t *header)
{
    uint64_t words[WORDS];
    for (unsigned i = 0; i < WORDS; i++)
        words[i] = word(header + i * WORD_BYTES);
    for (unsigned i = 0; i < GPR_COUNT; i++)
        cpu->gpr[i] = words[i];
    cpu->rip = words[16];
    cpu->rflags = words[17] & 0x254fd7;
    system_state_init(state, HOST_XCR0);
    state->gdtr = (struct table_register){canonical(words[18]), (uint16_t)words[19]};
    state->idtr = (struct table_register){canonical(words[20]), (uint16_t)words[21]};
    state->tr = (struct system_segment){(uint16_t)words[22], (uint32_t)words[24], canonical(words[25])};
    state->ldtr = (struct system_segment){(uint16_t)words[26], (uint32_t)words[28], canonical(words[29])};
    state->fs_base = canonical(words[30]);
    state->gs_base = canonical(words[31]);
    state->kernel_gs_base = canonical(words[32]);
    state->cr4 ^= words[33] & 8;
    state->interrupts = words[34] & 1;
}

/* Makes some gates and a code segment valid, so that handlers are reached more often than by chance. */
static void put_gates(const struct system_state *state, const uint8_t *chosen)
{
    uint64_t gdt = state->gdtr.base, idt = state->idtr.base;
    uint64_t code = HVT_GDT_CODE;
    if (gdt >= WINDOW && gdt <= M - 24 && chosen[0] & 1)
        memcpy(memory.hva + gdt + 8, &code, sizeof code);
    for (unsigned i = 1; i < 8; i++) {
        unsigned vector = chosen[i] & 31;
        uint64_t low = 0x8e0000080000 | (uint64_t)(chosen[i] >> 5) << 32 | (WINDOW & 0xffff) |
                       (uint64_t)(WINDOW >> 16) << 48;
        if (idt >= WINDOW && idt <= M - 33 * 16 && chosen[0] & 2)
            memcpy(memory.hva + idt + vector * 16, (const uint64_t[2]){low, 0}, 16);
    }
}

static void check_answer(enum emulation answer, const struct emulated *out, const struct cpu *before,
                         const struct cpu *after, const uint8_t *bytes)
{
    MUST(out->length <= INSTRUCTION_MAX);
    bool moved = memcmp(before, after, sizeof *before) != 0;
    switch (answer) {
    case EMULATED:
    case HALTED:
        MUST(out->length > 0 && !(answer == HALTED && after->rip != before->rip + out->length));
        break;
    case EMULATED_OUT:
        MUST(!moved && out->length > 0 && out->value == (uint32_t)before->gpr[GPR_RAX]);
        MUST(out->port == (uint16_t)before->gpr[GPR_RDX]);
        break;
    case BAD_PORT:
    case UNSUPPORTED:
    case GUEST_INTERRUPT:
        MUST(!moved && out->length > 0);
        break;
    case NOT_PRIVILEGED:
        MUST(!moved && out->length == 0);
        break;
    case GUEST_FAULT:
        MUST(!moved && !out->exception.software && out->exception.vector < 32);
        MUST(out->exception.vector == VECTOR_PF || out->exception.cr2 == 0);
        MUST(out->exception.vector != VECTOR_UD || out->exception.error == 0);
        break;
    }
    MUST(out->length == 0 || memcmp(bytes, out->bytes, out->length) == 0);
}

static void check_state(const struct system_state *state, const struct cpu *cpu)
{
    const uint64_t addresses[] = {state->fs_base, state->gs_base, cpu->rip};
    if (state->bases_changed) /* what the program will load into the hardware registers */
        for (unsigned i = 0; i < 2; i++)
            MUST(addresses[i] >> 47 == 0 || addresses[i] >> 47 == 0x1ffff);
    MUST(addresses[2] >> 47 == 0 || addresses[2] >> 47 == 0x1ffff);
    MUST(((state->cr0 ^ HVT_CR0) & 0x8001000d) == 0 && state->cr3 == HVT_PML4_GPA);
    MUST((state->efer & HVT_EFER) == HVT_EFER && !(state->xcr0 & ~(uint64_t)HOST_XCR0) && state->xcr0 & 1);
    MUST(!(state->dr7 & 0x20ff) && state->cr8 < 16);
}

/* Returns whether the guest goes on. */
static bool step(struct system_state *state, struct cpu *cpu)
{
    struct emulated out;
    struct cpu before = *cpu;
    uint8_t bytes[INSTRUCTION_MAX] = {0};
    for (uint32_t i = 0; i < sizeof bytes; i++)
        if (before.rip + i >= HVT_LOW_UNMAPPED_BYTES && before.rip + i < M)
            bytes[i] = memory.hva[before.rip + i];
    enum emulation answer = emulate(&memory, state, cpu, &out);
    check_answer(answer, &out, &before, cpu, bytes);
    switch (answer) {
    case EMULATED:
        return true;
    case EMULATED_OUT:
        cpu->rip += out.length;
        return true;
    case NOT_PRIVILEGED:
        out.exception = (struct exception){.vector = VECTOR_GP};
        break;
    case GUEST_FAULT:
    case GUEST_INTERRUPT:
        break;
    default:
        return false;
    }
    before = *cpu;
    if (fault_deliver(&memory, state, cpu, &out.exception)) {
        uint64_t rsp = cpu->gpr[GPR_RSP];
        MUST(rsp % 8 == 0 && rsp >= WINDOW && rsp < M);
        MUST(!(cpu->rflags & (RFLAGS_TF | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM)));
        return true;
    }
    MUST(memcmp(&before, cpu, sizeof before) == 0);
    return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!memory.hva)
        set_up();
    if (size < HEADER_BYTES)
        return 0;
    struct system_state state;
    struct cpu cpu;
    put_state(&state, &cpu, data);
    size_t window = size - HEADER_BYTES;
    if (window > M - WINDOW)
        window = M - WINDOW;
    memset(memory.hva + WINDOW, 0, M - WINDOW);
    memcpy(memory.hva + WINDOW, data + HEADER_BYTES, window);
    put_gates(&state, data + WORDS * WORD_BYTES);
    bool start_is_canonical = cpu.rip >> 47 == 0 || cpu.rip >> 47 == 0x1ffff;
    for (unsigned i = 0; i < STEPS; i++) {
        bool goes_on = step(&state, &cpu);
        if (start_is_canonical || goes_on)
            check_state(&state, &cpu);
        if (!goes_on)
            break;
    }
    return 0;
}

#ifdef FUZZ_STANDALONE
int main(int argc, char **argv)
{
    static uint8_t input[HEADER_BYTES + M - WINDOW];
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        MUST(file);
        LLVMFuzzerTestOneInput(input, fread(input, 1, sizeof input, file));
        fclose(file);
    }
    return 0;
}
#endif
