/*
 * A guest in ring 0 for the tests of arch/x86_64: registers, and memory that is a plain array with
 * a GDT, an IDT and a TSS in it. The assembler translates the instructions, so that their bytes are
 * independent of our decoder. Only instructions that the assembler refuses are written as bytes.
 * One TAP line for each check. A test ends with finish().
 */
#ifndef RING0_GUEST_H
#define RING0_GUEST_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "emulate.h"
#include "fault.h"
#include "holds.h"

/* The guest's memory: text is read-only, and after DATA comes a page that is read-only, too. */
#define M         0x200000u
#define TEXT      0x100000u
#define TEXT_END  0x104000u
#define CODE      0x101000u
#define DATA      0x110000u
#define READ_ONLY 0x111000u
#define GDT       0x120000u
#define LDT       0x121000u
#define IDT       0x122000u
#define TSS       0x124000u
#define STACK     0x140000u
#define IST1      0x150000u
#define HANDLER   0x102000u /* of vector v: HANDLER + v */

#define NOT_CANONICAL 0x800000000000ULL
#define HIGH_HALF     0xffff800000000000ULL
#define HOST_XCR0     0x2e7ULL /* x87 SSE AVX AVX-512 PKRU */

/* Selectors of the guest's GDT. */
enum {
    SEL_CODE = 0x08,
    SEL_DATA = 0x10,
    SEL_FS = 0x18, /* data at 0x12345678, not accessed */
    SEL_ABSENT_DATA = 0x20,
    SEL_CODE32 = 0x28, /* compatibility mode */
    SEL_ABSENT_CODE = 0x30,
    SEL_TSS = 0x38, /* two slots, as all system descriptors */
    SEL_BUSY = 0x48,
    SEL_ABSENT_TSS = 0x58,
    SEL_LDT = 0x68,
    SEL_CODE_L_AND_D = 0x78,
    SEL_USER_DATA = 0x80,
    SEL_READ_ONLY = 0x88,
    SEL_EXECUTE_ONLY = 0x90,
    SEL_BAD_TSS = 0x98, /* its base is not a canonical address */
    SEL_USER_CODE = 0xa8,
    GDT_BYTES = 0xb0,
    LDT_FS = 0x0c, /* the second entry of the LDT */
};

struct code {
    const uint8_t *bytes;
    size_t length;
};

/* The bytes of an assembler text. Registers are written with two percent signs. */
#define ASM(text)                                                                                            \
    ({                                                                                                       \
        const uint8_t *begin_, *end_;                                                                        \
        __asm__(".pushsection .rodata\n1: " text "\n2: .popsection\n"                                        \
                "lea 1b(%%rip), %0\nlea 2b(%%rip), %1"                                                       \
                : "=&r"(begin_), "=r"(end_));                                                                \
        (struct code){begin_, (size_t)(end_ - begin_)};                                                      \
    })
#define BYTES(...) ((struct code){(const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__})})

static uint8_t ram[M] __attribute__((aligned(4096)));
static struct guest_memory memory = {
    .hva = ram,
    .bytes = M,
    .range_count = 2,
    .ranges = {{TEXT, TEXT_END, SEGMENT_EXEC}, {READ_ONLY, READ_ONLY + 0x1000, SEGMENT_READ}},
};
static struct system_state state;
static struct cpu cpu;
static struct emulated out;

static inline void put(uint64_t gpa, const void *from, size_t bytes)
{
    memcpy(ram + gpa, from, bytes);
}

static inline void put64(uint64_t gpa, uint64_t value)
{
    put(gpa, &value, sizeof value);
}

static inline uint64_t get64(uint64_t gpa)
{
    uint64_t value;
    memcpy(&value, ram + gpa, sizeof value);
    return value;
}

static inline uint16_t get16(uint64_t gpa)
{
    uint16_t value;
    memcpy(&value, ram + gpa, sizeof value);
    return value;
}

static inline void put_pointer(uint64_t gpa, uint64_t offset, size_t offset_bytes, uint16_t selector)
{
    put(gpa, &offset, offset_bytes);
    put(gpa + offset_bytes, &selector, 2);
}

static inline void put_table(uint64_t gpa, uint16_t limit, uint64_t base)
{
    put(gpa, &limit, 2);
    put64(gpa + 2, base);
}

/* An interrupt gate (type 14, or a trap gate of type 15) for HANDLER + vector. */
static inline void put_gate(unsigned vector, unsigned type, unsigned ist, bool present)
{
    uint64_t offset = HANDLER + vector;
    put64(IDT + vector * 16, (offset & 0xffff) | (uint64_t)SEL_CODE << 16 | (uint64_t)ist << 32 |
                                 (uint64_t)type << 40 | (uint64_t)present << 47 |
                                 (offset >> 16 & 0xffff) << 48);
    put64(IDT + vector * 16 + 8, offset >> 32);
}

static inline void put_system(unsigned selector, unsigned type, bool present, uint64_t base, uint64_t limit)
{
    put64(GDT + selector, (limit & 0xffff) | (base & 0xffffff) << 16 | (uint64_t)type << 40 |
                              (uint64_t)present << 47 | (base >> 24 & 0xff) << 56);
    put64(GDT + selector + 8, base >> 32);
}

static inline void put_gdt(void)
{
    put64(GDT + SEL_CODE, HVT_GDT_CODE);
    put64(GDT + SEL_DATA, HVT_GDT_DATA);
    put64(GDT + SEL_FS, 0x12cf92345678ffff);
    put64(GDT + SEL_ABSENT_DATA, HVT_GDT_DATA & ~(1ULL << 47));
    put64(GDT + SEL_CODE32, 0x00cf9b000000ffff);
    put64(GDT + SEL_ABSENT_CODE, HVT_GDT_CODE & ~(1ULL << 47));
    put_system(SEL_TSS, 9, true, TSS, 0x67);
    put_system(SEL_BUSY, 11, true, TSS, 0x67);
    put_system(SEL_ABSENT_TSS, 9, false, TSS, 0x67);
    put_system(SEL_LDT, 2, true, LDT, 0x0f);
    put64(GDT + SEL_CODE_L_AND_D, HVT_GDT_CODE | 1ULL << 54);
    put64(GDT + SEL_USER_DATA, HVT_GDT_DATA | 3ULL << 45);
    put64(GDT + SEL_READ_ONLY, HVT_GDT_DATA & ~(1ULL << 41));
    put64(GDT + SEL_EXECUTE_ONLY, HVT_GDT_CODE);
    put_system(SEL_BAD_TSS, 9, true, NOT_CANONICAL, 0x67);
    put64(GDT + SEL_USER_CODE, HVT_GDT_CODE | 3ULL << 45);
    put64(LDT + 8, 0x00cf93abcdefffff);
}

/* A guest that has its own GDT, IDT and TSS, and executes `code` next. */
static inline void fresh(struct code code)
{
    memset(ram, 0, sizeof ram);
    system_state_init(&state, HOST_XCR0);
    put_gdt();
    state.gdtr = (struct table_register){GDT, GDT_BYTES - 1};
    state.idtr = (struct table_register){IDT, 32 * 16 - 1};
    state.tr = (struct system_segment){.selector = SEL_TSS, .limit = 0x67, .base = TSS};
    put64(TSS + 0x24, IST1);
    for (unsigned vector = 0; vector < 32; vector++)
        put_gate(vector, 14, 0, true);
    memset(&cpu, 0, sizeof cpu);
    for (unsigned i = 0; i < GPR_COUNT; i++)
        cpu.gpr[i] = 0x1111111111111111ULL * i;
    cpu.gpr[GPR_RSP] = STACK;
    cpu.rip = CODE;
    cpu.rflags = 0x10246; /* as in a host's frame: RF IF ZF PF */
    put(CODE, code.bytes, code.length);
}

static inline enum emulation run(void)
{
    return emulate(&memory, &state, &cpu, &out);
}

static inline bool emulated(struct code code)
{
    return run() == EMULATED && cpu.rip == CODE + code.length && out.length == code.length &&
           !(cpu.rflags & RFLAGS_RF);
}

/* The guest receives this exception, and none of its state has changed. */
static inline bool faults(enum vector vector, uint32_t error)
{
    struct system_state state_before = state;
    struct cpu cpu_before = cpu;
    return run() == GUEST_FAULT && out.exception.vector == vector && out.exception.error == error &&
           !out.exception.software && memcmp(&cpu, &cpu_before, sizeof cpu) == 0 &&
           memcmp(&state, &state_before, sizeof state) == 0;
}

static inline bool page_faults(uint64_t address, uint32_t error)
{
    return faults(VECTOR_PF, error) && out.exception.cr2 == address;
}

static inline bool answers(enum emulation answer)
{
    struct system_state state_before = state;
    struct cpu cpu_before = cpu;
    return run() == answer && memcmp(&cpu, &cpu_before, sizeof cpu) == 0 &&
           memcmp(&state, &state_before, sizeof state) == 0;
}

static inline int finish(void)
{
    return claims_end();
}

#endif
