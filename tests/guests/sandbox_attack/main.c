/*
 * Attacks the sandbox that it runs in: does what its arguments say, in their order. At the end
 * prints "done", status 0. Devices service0 (handle 1), small (2) and large (3).
 *
 * - call=NR,A,B,C,D,E,F: uses the program's own `syscall` instruction, which it searches; prints "call = N"
 * - syscall=NR,..., int80=NR,..., sysenter=NR, vsyscall=N, interrupt=N (int n; 3: int3): the guest's own
 *   instructions
 * - poke=ADDRESS,HEX writes bytes; peek=ADDRESS prints "peek = N", 64 bits
 * - noise=ADDRESS,LEN,SEED overwrites memory with bytes made from the seed
 * - replace=ADDRESS,LEN,OLD,NEW: every 32-bit OLD becomes NEW; prints "replaced N"
 * - jump=ADDRESS,SEED with registers and flags made from the seed, often hostile ones
 * - goto=ADDRESS,RSP with RSP, and all other registers zero
 * - flags=BITS into RFLAGS; prints "flags = BITS" after each kind of hypercall
 * - site, gate, out: a hypercall by a patched call site, by the gate page, by a signal
 * - odd: accesses and a hypercall at odd addresses, with alignment checks
 * - pkru=N writes PKRU: rights to memory, where the processor has them
 * - say=TEXT, spin, flood, exit=STATUS
 * - events=N,DELAY_NS signals N times to the monitor that there is an event, and reads no answer
 * - chatter=AHEAD does so forever, and reads AHEAD answers fewer than it signals
 *
 * A number is a sum of terms: 0x10 or 16; `p`, the address where the program is loaded (needs
 * base=OFFSET first, the offset in the program that the pointer at 0xfff00 points to); `b`, a
 * page-aligned buffer of the guest; `m`, the end of memory; [sum], the 64 bits at that address.
 */
#include <tender/guest.h>

#include "gate.h"

TENDER_MANIFEST(3, TENDER_NET("service0"), TENDER_BLOCK("small"), TENDER_BLOCK("large"));

#define ARGUMENTS_MAX 8
#define BUFFER_BYTES  65536
#define SCAN_BYTES    4096
#define FD_CONTROL    120 /* bindings/machine/sandbox/fds.h */
#define NR_READ       0
#define NR_WRITE      1

static uint8_t buffer[BUFFER_BYTES] __attribute__((aligned(4096)));
static uint64_t entry_offset;
static uint64_t random_state;

static const uint64_t *backend_page(void)
{
    return (const uint64_t *)TENDER_GATE_BACKEND_GPA;
}

static uint64_t random_next(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static void random_seed(uint64_t seed)
{
    random_state = (seed + 1) * 0x9e3779b97f4a7c15;
    for (unsigned i = 0; i < 8; i++) { /* similar seeds begin alike */
        random_next();
    }
}

/* ---- the language of the arguments ---- */

static uint64_t sum_parse(const char **text);

static uint64_t term_parse(const char **text)
{
    char word[32];
    size_t len = 0;
    if (**text == '[') {
        ++*text;
        uint64_t at = sum_parse(text);
        if (**text != ']') {
            panic("no ] at \"%s\"", *text);
        }
        ++*text;
        return *(const volatile uint64_t *)at;
    }
    while (**text && !strchr("+,]", **text) && len < sizeof(word) - 1) {
        word[len++] = *(*text)++;
    }
    word[len] = 0;
    uint64_t value = 0;
    if (strcmp(word, "p") == 0) {
        return backend_page()[0] - entry_offset;
    }
    if (strcmp(word, "b") == 0) {
        return gpa_of(buffer);
    }
    if (strcmp(word, "m") == 0) {
        return guest_memory_bytes();
    }
    if (!number_parse(word, &value)) {
        panic("\"%s\" is not a number", word);
    }
    return value;
}

static uint64_t sum_parse(const char **text)
{
    uint64_t sum = term_parse(text);
    while (**text == '+') {
        ++*text;
        sum += term_parse(text);
    }
    return sum;
}

/* Parses the numbers in `text` into `values`; a missing one is 0. Returns what follows the last
 * parsed number. */
static const char *numbers_parse(const char *text, uint64_t *values, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        values[i] = 0;
        if (*text) {
            values[i] = sum_parse(&text);
            text += *text == ',';
        }
    }
    return text;
}

static unsigned digit_value(char digit)
{
    return (unsigned)(digit <= '9' ? digit - '0' : digit - 'a' + 10);
}

static void poke(uint64_t at, const char *hex)
{
    for (; hex[0] && hex[1]; hex += 2) {
        *(volatile uint8_t *)at++ = (uint8_t)(digit_value(hex[0]) << 4 | digit_value(hex[1]));
    }
}

/* ---- system calls ---- */

/* The address of `syscall; pop %rcx; jmp *%rcx` in the program, after the entry that the guest knows. */
static uint64_t gadget(void)
{
    const uint8_t *code = (const uint8_t *)backend_page()[0];
    for (unsigned i = 0; i < SCAN_BYTES; i++) {
        if (code[i] == 0x0f && code[i + 1] == 0x05 && code[i + 2] == 0x59) {
            return (uint64_t)(code + i);
        }
    }
    panic("no syscall instruction found");
}

static uint64_t call_at(uint64_t at, const uint64_t v[7])
{
    register uint64_t r10 __asm__("r10") = v[4];
    register uint64_t r8 __asm__("r8") = v[5];
    register uint64_t r9 __asm__("r9") = v[6];
    uint64_t answer;
    __asm__ volatile("call *%[at]"
                     : "=a"(answer)
                     : "a"(v[0]), "D"(v[1]), "S"(v[2]), "d"(v[3]), "r"(r10), "r"(r8), "r"(r9), [at] "r"(at)
                     : "rcx", "r11", "memory", "cc");
    return answer;
}

/* call_at() calls them. */
__asm__(".pushsection .text, \"ax\", @progbits\n"
        "own_syscall: syscall\n\tret\n"
        "own_int80: int $0x80\n\tret\n"
        "own_sysenter: mov %rsp, %rbp\n\tsysenter\n\tret\n"
        ".popsection\n");
extern const uint8_t own_syscall[], own_int80[], own_sysenter[];

/* ---- jumps ---- */

struct registers {
    uint64_t gpr[15]; /* all except RSP */
    uint64_t flags;
    uint64_t rsp;
    uint64_t target;
};

static struct registers wanted __attribute__((used));

/* Loads all registers from `wanted`. Never returns here. */
__asm__(".pushsection .text, \"ax\", @progbits\n"
        "jump_wanted:\n\t"
        "mov wanted+128(%rip), %rsp\n\t" /* a bad stack faults at the push below, as it would at the target */
        "mov wanted+0(%rip), %rax\n\t"
        "mov wanted+8(%rip), %rbx\n\t"
        "mov wanted+16(%rip), %rcx\n\t"
        "mov wanted+24(%rip), %rdx\n\t"
        "mov wanted+32(%rip), %rsi\n\t"
        "mov wanted+40(%rip), %rdi\n\t"
        "mov wanted+48(%rip), %rbp\n\t"
        "mov wanted+56(%rip), %r8\n\t"
        "mov wanted+64(%rip), %r9\n\t"
        "mov wanted+72(%rip), %r10\n\t"
        "mov wanted+80(%rip), %r11\n\t"
        "mov wanted+88(%rip), %r12\n\t"
        "mov wanted+96(%rip), %r13\n\t"
        "mov wanted+104(%rip), %r14\n\t"
        "mov wanted+112(%rip), %r15\n\t"
        "lea wanted+120(%rip), %rsp\n\t"
        "popfq\n\t"
        "mov wanted+128(%rip), %rsp\n\t"
        "jmp *wanted+136(%rip)\n"
        ".popsection\n");
extern const uint8_t jump_wanted[];

static uint64_t hostile_value(void)
{
    uint64_t program = backend_page()[0] - entry_offset;
    switch (random_next() >> 60) {
    case 0:
        return 0;
    case 1:
        return ~0ULL;
    case 2:
        return random_next() >> 56; /* a descriptor, or a system call's number */
    case 3:
    case 4:
        return random_next() >> 44; /* in low memory */
    case 5:
    case 6:
    case 7:
        return gpa_of(buffer) + (random_next() >> 48);
    case 8:
    case 9:
    case 10:
        return program + (random_next() >> 46); /* 256 KiB: the program's text and data */
    case 11:
        return (random_next() >> 63) << 63 | random_next() >> (random_next() & 63);
    case 12:
        return guest_memory_bytes() - (random_next() >> 58);
    default:
        return random_next();
    }
}

static _Noreturn void jump(uint64_t target, uint64_t seed)
{
    random_seed(seed);
    for (unsigned i = 0; i < BUFFER_BYTES; i += 8) {
        uint64_t value = hostile_value();
        memcpy(buffer + i, &value, 8);
    }
    for (unsigned i = 0; i < 15; i++) {
        wanted.gpr[i] = hostile_value();
    }
    wanted.flags = 0x202 | (random_next() & 0x8d5);    /* the status flags */
    wanted.flags |= (random_next() & 3) ? 0 : 0x400;   /* DF */
    wanted.flags |= (random_next() & 7) ? 0 : 0x40000; /* AC */
    wanted.flags |= (random_next() & 15) ? 0 : 0x100;  /* TF */
    wanted.rsp = random_next() & 1 ? gpa_of(buffer) + BUFFER_BYTES / 2 : hostile_value();
    wanted.target = target;
    __asm__ volatile("jmp jump_wanted");
    __builtin_unreachable();
}

static _Noreturn void go_to(uint64_t target, uint64_t rsp)
{
    memset(&wanted, 0, sizeof(wanted));
    wanted.flags = 0x202;
    wanted.rsp = rsp;
    wanted.target = target;
    __asm__ volatile("jmp jump_wanted");
    __builtin_unreachable();
}

/* ---- hypercalls, with the given flags ---- */

static struct hvt_walltime walltime_call;

static uint64_t flags_over_site(uint64_t flags)
{
    __asm__ volatile(
        "push %[flags]\n\tpopfq\n\tmov %[port], %%edx\n\tout %%eax, (%%dx)\n\t"
        "pushfq\n\tpop %[flags]\n\tpush $2\n\tpopfq"
        : [flags] "+r"(flags)
        : "a"((uint32_t)gpa_of(&walltime_call)), [port] "i"(HVT_PORT_BASE + HVT_HYPERCALL_WALLTIME)
        : "edx", "memory", "cc");
    return flags;
}

/* An `out` without the form that is patched. */
static uint64_t flags_over_out(uint64_t flags)
{
    __asm__ volatile("push %[flags]\n\tpopfq\n\tout %%eax, (%%dx)\n\t"
                     "pushfq\n\tpop %[flags]\n\tpush $2\n\tpopfq"
                     : [flags] "+r"(flags)
                     : "a"((uint32_t)gpa_of(&walltime_call)), "d"(HVT_PORT_BASE + HVT_HYPERCALL_WALLTIME)
                     : "memory", "cc");
    return flags;
}

static uint64_t flags_over_gate(uint64_t flags)
{
    const uint64_t slot = TENDER_GATE_GPA + HVT_HYPERCALL_WALLTIME * TENDER_GATE_SLOT_BYTES;
    register uint64_t kept __asm__("rbx") = flags;
    __asm__ volatile("push %[kept]\n\tpopfq\n\tcall *%[slot]\n\tpushfq\n\tpop %[kept]\n\tpush $2\n\tpopfq"
                     : [kept] "+r"(kept)
                     : "D"((uint32_t)gpa_of(&walltime_call)), [slot] "a"(slot)
                     : "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "memory", "cc");
    return kept;
}

static void expect_time(const char *how)
{
    if (walltime_call.nsecs < 1704067200000000000) {
        panic("%s: no time", how);
    }
    walltime_call.nsecs = 0;
}

static void try_flags(uint64_t flags)
{
    uint64_t site = flags_over_site(flags);
    expect_time("site");
    uint64_t out = flags_over_out(flags);
    expect_time("out");
    uint64_t gate = flags_over_gate(flags);
    expect_time("gate");
    printf("flags = %#lx %#lx %#lx\n", site, out, gate);
}

/* AC: the guest's own accesses, and a hypercall's structure, at odd addresses. */
static void try_odd_addresses(void)
{
    __asm__ volatile("pushfq\n\torl $0x40000, (%%rsp)\n\tpopfq\n\t"
                     "movq $7, 1(%[at])\n\t"
                     "mov %[port], %%edx\n\tout %%eax, (%%dx)\n\t"
                     "push $2\n\tpopfq"
                     :
                     : [at] "r"(buffer),
                       "a"((uint32_t)gpa_of(buffer + 33)), [port] "i"(HVT_PORT_BASE + HVT_HYPERCALL_WALLTIME)
                     : "edx", "memory", "cc");
    memcpy(&walltime_call, buffer + 33, sizeof(walltime_call));
    expect_time("odd");
}

/* ---- the script ---- */

/* Outside of all functions, so that a test finds it by its name. */
__asm__(".pushsection .text, \"ax\", @progbits\n.globl spin_here\nspin_here: jmp spin_here\n.popsection\n");
extern const uint8_t spin_here[];

static void flood(void)
{
    static char line[4096];
    memset(line, 'x', sizeof(line));
    for (;;) {
        console_write(line, sizeof(line));
    }
}

static void events(uint64_t count, uint64_t delay_ns)
{
    static const char word = 'e';
    const uint64_t call[7] = {NR_WRITE, FD_CONTROL, (uint64_t)&word, 1};
    for (uint64_t i = 0; i < count; i++) {
        call_at(gadget(), call);
        uint64_t until = clock_monotonic() + delay_ns;
        while (delay_ns && clock_monotonic() < until) {
        }
    }
}

static void chatter(uint64_t ahead)
{
    static char word = 'e';
    const uint64_t tell[7] = {NR_WRITE, FD_CONTROL, (uint64_t)&word, 1};
    const uint64_t hear[7] = {NR_READ, FD_CONTROL, (uint64_t)buffer, 1};
    events(ahead, 0);
    for (;;) {
        call_at(gadget(), tell);
        call_at(gadget(), hear);
    }
}

static void replace(uint64_t at, uint64_t len, uint32_t old, uint32_t new)
{
    unsigned found = 0;
    for (uint64_t i = 0; i + 4 <= len; i += 4) {
        volatile uint32_t *word = (volatile uint32_t *)(at + i);
        if (*word == old) {
            *word = new;
            found++;
        }
    }
    printf("replaced %u\n", found);
}

static void noise(uint64_t at, uint64_t len, uint64_t seed)
{
    random_seed(seed);
    for (uint64_t i = 0; i < len; i++) {
        ((volatile uint8_t *)at)[i] = (uint8_t)(random_next() >> 56);
    }
}

static void interrupt(uint64_t vector)
{
    if (vector == 3) {
        __asm__ volatile("int3");
    } else {
        buffer[0] = 0;
        __asm__ volatile("int $0x41");
    }
}

static void pkru_write(uint32_t value)
{
    __asm__ volatile("wrpkru" : : "a"(value), "c"(0), "d"(0) : "memory");
}

static bool is(const char *argument, const char *name, const char **rest)
{
    size_t len = strlen(name);
    if (strncmp(argument, name, len) != 0 || (argument[len] && argument[len] != '=')) {
        return false;
    }
    *rest = argument + len + (argument[len] == '=');
    return true;
}

static void perform(const char *argument)
{
    uint64_t v[ARGUMENTS_MAX];
    const char *rest;
    if (is(argument, "base", &rest)) {
        numbers_parse(rest, &entry_offset, 1);
    } else if (is(argument, "call", &rest)) {
        numbers_parse(rest, v, 7);
        printf("call = %ld\n", (long)call_at(gadget(), v));
    } else if (is(argument, "syscall", &rest)) {
        numbers_parse(rest, v, 7);
        printf("call = %ld\n", (long)call_at((uint64_t)own_syscall, v));
    } else if (is(argument, "int80", &rest)) {
        numbers_parse(rest, v, 7);
        printf("call = %ld\n", (long)call_at((uint64_t)own_int80, v));
    } else if (is(argument, "sysenter", &rest)) {
        numbers_parse(rest, v, 7);
        printf("call = %ld\n", (long)call_at((uint64_t)own_sysenter, v));
    } else if (is(argument, "vsyscall", &rest)) {
        const uint64_t none[7] = {0};
        numbers_parse(rest, v, 1);
        printf("call = %ld\n", (long)call_at(0xffffffffff600000 + v[0] * 0x400, none));
    } else if (is(argument, "interrupt", &rest)) {
        numbers_parse(rest, v, 1);
        interrupt(v[0]);
    } else if (is(argument, "poke", &rest)) {
        const char *hex = numbers_parse(rest, v, 1);
        poke(v[0], hex);
    } else if (is(argument, "peek", &rest)) {
        numbers_parse(rest, v, 1);
        printf("peek = %lu\n", *(const volatile uint64_t *)v[0]);
    } else if (is(argument, "noise", &rest)) {
        numbers_parse(rest, v, 3);
        noise(v[0], v[1], v[2]);
    } else if (is(argument, "replace", &rest)) {
        numbers_parse(rest, v, 4);
        replace(v[0], v[1], (uint32_t)v[2], (uint32_t)v[3]);
    } else if (is(argument, "jump", &rest)) {
        numbers_parse(rest, v, 2);
        jump(v[0], v[1]);
    } else if (is(argument, "goto", &rest)) {
        numbers_parse(rest, v, 2);
        go_to(v[0], v[1]);
    } else if (is(argument, "flags", &rest)) {
        numbers_parse(rest, v, 1);
        try_flags(v[0]);
    } else if (is(argument, "odd", &rest)) {
        try_odd_addresses();
    } else if (is(argument, "site", &rest)) {
        flags_over_site(2);
        expect_time("site");
    } else if (is(argument, "gate", &rest)) {
        flags_over_gate(2);
        expect_time("gate");
    } else if (is(argument, "out", &rest)) {
        flags_over_out(2);
        expect_time("out");
    } else if (is(argument, "pkru", &rest)) {
        numbers_parse(rest, v, 1);
        pkru_write((uint32_t)v[0]);
    } else if (is(argument, "say", &rest)) {
        printf("%s\n", rest);
    } else if (is(argument, "spin", &rest)) {
        __asm__ volatile("jmp spin_here");
    } else if (is(argument, "flood", &rest)) {
        flood();
    } else if (is(argument, "events", &rest)) {
        numbers_parse(rest, v, 2);
        events(v[0], v[1]);
    } else if (is(argument, "chatter", &rest)) {
        numbers_parse(rest, v, 1);
        chatter(v[0]);
    } else if (is(argument, "exit", &rest)) {
        numbers_parse(rest, v, 1);
        guest_exit((int)v[0]);
    } else {
        panic("%s is not understood", argument);
    }
}

int main(int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        perform(argv[i]);
    }
    printf("done\n");
    return 0;
}
