/*
 * A CPU exception ends the guest. The handler prints the place and the registers, leaves a cookie
 * for the tender's core dump, and halts with status 255. The interrupted code never resumes.
 *
 * Rule: this code runs when any other part may be broken. It uses only static memory and its own
 * stacks. A fault inside the handler is reported with less at each level: first the full dump, then
 * one line, then only the halt. So it cannot loop.
 */
#include "kernel.h"

#define TRAP_VECTORS     32
#define TRAP_STACK_BYTES 8192
#define TSS_SELECTOR     0x18

/* The order in which trap_common (traps_x86_64.S) pushes it, lowest address first. */
struct trap_frame {
    uint64_t cr2;
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8;
    uint64_t rbp, rdi, rsi, rdx, rcx, rbx, rax;
    uint64_t vector, error_code;
    uint64_t rip, cs, rflags, rsp, ss; /* pushed by the CPU */
};
_Static_assert(sizeof(struct trap_frame) == 23 * 8, "traps_x86_64.S pushes 23 words");

/* Intel SDM volume 3, 7.7: the 64-bit TSS. Only the interrupt stacks are used. */
struct tss {
    uint32_t reserved0;
    uint64_t rsp[3];
    uint64_t reserved1;
    uint64_t ist[7]; /* ist[0] is IST1 */
    uint64_t reserved2;
    uint16_t reserved3;
    uint16_t io_map;
} __attribute__((packed));
_Static_assert(sizeof(struct tss) == 104, "TSS");

struct idt_gate {
    uint16_t offset_low;
    uint16_t selector;
    uint8_t ist;
    uint8_t type;
    uint16_t offset_middle;
    uint32_t offset_high;
    uint32_t reserved;
};
_Static_assert(sizeof(struct idt_gate) == 16, "IDT gate");

struct table_pointer {
    uint16_t limit;
    uint64_t base;
} __attribute__((packed));

enum trap_stack { STACK_USUAL = 1, STACK_CRITICAL = 2 }; /* IST numbers */

/* traps_x86_64.S */
void cpu_tables_load(const void *gdt_pointer, const void *idt_pointer, uint16_t tss_selector);
extern const uint8_t trap_entries[TRAP_VECTORS][16];
_Noreturn void trap_report(const struct trap_frame *frame);

static uint8_t stack_usual[TRAP_STACK_BYTES] __attribute__((aligned(16)));
static uint8_t stack_nested[TRAP_STACK_BYTES] __attribute__((aligned(16)));
static uint8_t stack_critical[TRAP_STACK_BYTES] __attribute__((aligned(16)));

/* Not static: tests break them on purpose. */
struct tss trap_tss;
unsigned trap_depth;

/*
 * The null, code and data descriptors, equal to the tender's, then the two words of the TSS
 * descriptor.
 */
static uint64_t gdt[5] = {0, HVT_GDT_CODE, HVT_GDT_DATA, 0, 0};
static struct idt_gate idt[TRAP_VECTORS];

/* The tender may read HVT_HALT_COOKIE_BYTES bytes from the cookie's address. */
static union {
    struct hvt_trap_cookie cookie;
    uint8_t bytes[HVT_HALT_COOKIE_BYTES];
} halt_cookie __attribute__((aligned(16)));
_Static_assert(sizeof(halt_cookie) >= HVT_HALT_COOKIE_BYTES, "cookie space");

static const char *const vector_names[TRAP_VECTORS] = {
    "#DE divide error",
    "#DB debug",
    "NMI",
    "#BP breakpoint",
    "#OF overflow",
    "#BR bound range exceeded",
    "#UD invalid opcode",
    "#NM device not available",
    "#DF double fault",
    "coprocessor segment overrun",
    "#TS invalid TSS",
    "#NP segment not present",
    "#SS stack fault",
    "#GP general protection",
    "#PF page fault",
    "vector 15",
    "#MF x87 floating-point error",
    "#AC alignment check",
    "#MC machine check",
    "#XM SIMD floating-point error",
    "#VE virtualization",
    "#CP control protection",
    "vector 22",
    "vector 23",
    "vector 24",
    "vector 25",
    "vector 26",
    "vector 27",
    "#HV hypervisor injection",
    "#VC VMM communication",
    "#SX security",
    "vector 31",
};

static bool vector_is_critical(unsigned vector)
{
    return vector == 2 || vector == 8 || vector == 18; /* NMI, double fault, machine check */
}

static uint64_t stack_top(uint8_t *stack)
{
    return gpa_of(stack) + TRAP_STACK_BYTES;
}

static void idt_fill(void)
{
    for (unsigned vector = 0; vector < TRAP_VECTORS; vector++) {
        uint64_t entry = gpa_of(trap_entries[vector]);
        idt[vector] = (struct idt_gate){
            .offset_low = (uint16_t)entry,
            .selector = HVT_SELECTOR_CS,
            .ist = vector_is_critical(vector) ? STACK_CRITICAL : STACK_USUAL,
            .type = 0x8e, /* present, DPL 0, 64-bit interrupt gate */
            .offset_middle = (uint16_t)(entry >> 16),
            .offset_high = (uint32_t)(entry >> 32),
        };
    }
}

/*
 * SDM volume 3, 7.2.3: a present 64-bit TSS, 16 bytes. Memory ends at 4 GiB, so the high word is 0.
 */
static void gdt_describe_tss(void)
{
    uint64_t base = gpa_of(&trap_tss);
    uint64_t limit = sizeof(trap_tss) - 1;
    gdt[3] = limit | (base & 0xffffff) << 16 | 0x89ULL << 40 | (base >> 24 & 0xff) << 56;
    gdt[4] = base >> 32;
}

void trap_init(void)
{
    trap_tss.ist[STACK_USUAL - 1] = stack_top(stack_usual);
    trap_tss.ist[STACK_CRITICAL - 1] = stack_top(stack_critical);
    trap_tss.io_map = sizeof(trap_tss);
    gdt_describe_tss();
    idt_fill();
    const struct table_pointer gdt_pointer = {sizeof(gdt) - 1, gpa_of(gdt)};
    const struct table_pointer idt_pointer = {sizeof(idt) - 1, gpa_of(idt)};
    cpu_tables_load(&gdt_pointer, &idt_pointer, TSS_SELECTOR);
}

static _Noreturn void trap_halt(const struct trap_frame *frame)
{
    static struct hvt_halt halt;
    halt_cookie.cookie = (struct hvt_trap_cookie){
        .cr2 = frame->cr2,
        .error_code = frame->error_code,
        .rip = frame->rip,
        .cs = frame->cs,
        .rflags = frame->rflags,
        .rsp = frame->rsp,
        .ss = frame->ss,
    };
    halt.cookie = gpa_of(&halt_cookie);
    halt.exit_status = HVT_EXIT_ABORT;
    for (;;) {
        gate_halt(&halt);
    }
}

static void page_fault_explain(const struct trap_frame *frame)
{
    uint64_t code = frame->error_code;
    /* Bit 4 means "instruction fetch", but only with EFER.NXE, which the ABI leaves off. */
    bool fetch = code & 0x10 || frame->cr2 == frame->rip;
    const char *access = fetch ? "instruction fetch" : code & 2 ? "write" : "read";
    const char *why = code & 8 ? "reserved bit set" : code & 1 ? "not permitted" : "not mapped";
    printf("trap: %s of %#lx: %s\n", access, frame->cr2, why);
}

static void registers_print(const struct trap_frame *f)
{
    printf("trap: rip %016lx  cs  %016lx  rflags %016lx\n", f->rip, f->cs, f->rflags);
    printf("trap: rsp %016lx  ss  %016lx  cr2    %016lx\n", f->rsp, f->ss, f->cr2);
    printf("trap: rax %016lx  rbx %016lx  rcx    %016lx\n", f->rax, f->rbx, f->rcx);
    printf("trap: rdx %016lx  rsi %016lx  rdi    %016lx\n", f->rdx, f->rsi, f->rdi);
    printf("trap: rbp %016lx  r8  %016lx  r9     %016lx\n", f->rbp, f->r8, f->r9);
    printf("trap: r10 %016lx  r11 %016lx  r12    %016lx\n", f->r10, f->r11, f->r12);
    printf("trap: r13 %016lx  r14 %016lx  r15    %016lx\n", f->r13, f->r14, f->r15);
}

/* trap_common (traps_x86_64.S) calls it on an interrupt stack. */
_Noreturn void trap_report(const struct trap_frame *frame)
{
    trap_depth++;
    if (trap_depth > 2) {
        trap_halt(frame);
    }
    /* A fault from here on must not overwrite the frame that is being reported. */
    trap_tss.ist[STACK_USUAL - 1] = stack_top(stack_nested);
    const char *name = frame->vector < TRAP_VECTORS ? vector_names[frame->vector] : "vector past 31";
    if (trap_depth == 2) {
        printf("\nABORT: %s inside the trap handler, rip=0x%lx\n", name, frame->rip);
        trap_halt(frame);
    }
    printf("\ntrap: %s, vector %lu, error code 0x%lx\n", name, frame->vector, frame->error_code);
    if (frame->vector == 14) {
        page_fault_explain(frame);
    }
    registers_print(frame);
    printf("ABORT: %s, rip=0x%lx\n", name, frame->rip);
    trap_halt(frame);
}
