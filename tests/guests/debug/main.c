/*
 * A guest to debug. The first argument says what it does; each form prints "ready" first.
 *
 *     debug.elf spin ROUNDS    computes that many rounds without a hypercall, with a stack of several frames
 *                              and inlined functions, then prints "sum NUMBER"; status 0
 *     debug.elf poll ROUNDS    waits a millisecond that many times, then prints "waited ROUNDS"; status 0
 *     debug.elf sleep          waits for a day in one poll
 *     debug.elf print BYTES    prints that many bytes in one console write, then "printed"; status 0
 *     debug.elf fault          reads through a null pointer in an inlined function: a page fault; status 255
 *     debug.elf divide         divides by zero; status 255
 *     debug.elf invalid        executes ud2; status 255
 *     debug.elf wedge          its handler of #UD is a ud2: it faults for ever
 *     debug.elf vectors ROUNDS computes in XMM registers without a hypercall, prints "lanes A B"; status 0
 *     debug.elf steps ROUNDS   steps itself by TF, its handler sets RF; prints "steps NUMBER"; status 0
 *     debug.elf halt           executes hlt, which no guest may do; status 1
 *     debug.elf privileged N   executes N instructions that only ring 0 may, then prints "done"; status 0
 */
#include <tender/guest.h>

TENDER_MANIFEST(0);

struct node {
    struct node *next;
    uint64_t value;
};

static struct node nodes[4];
volatile uint64_t ticks; /* the rounds so far: for watchpoints */
volatile struct node *volatile missing;

static inline __attribute__((always_inline)) uint64_t mix(uint64_t x, uint64_t salt)
{
    uint64_t mixed = x * 6364136223846793005u + salt;
    return mixed ^ mixed >> 29;
}

__attribute__((noinline)) uint64_t walk(const struct node *head, int depth)
{
    uint64_t sum = 0, at = 0;
    for (const struct node *node = head; node; node = node->next)
        sum += mix(node->value, at++);
    if (depth > 0)
        return sum + walk(head, depth - 1);
    return sum;
}

__attribute__((noinline)) uint64_t tick(uint64_t seed)
{
    uint64_t got = walk(nodes, 3);
    ticks++;
    return got ^ seed;
}

static int spin(uint64_t rounds)
{
    uint64_t sum = 1;
    while (ticks < rounds)
        sum = mix(tick(sum), 1);
    printf("sum %lu\n", sum);
    return 0;
}

__attribute__((noinline)) void wait_once(void)
{
    poll_wait(1000000, NULL);
    ticks++;
}

static int wait(uint64_t rounds)
{
    for (uint64_t i = 0; i < rounds; i++)
        wait_once();
    printf("waited %lu\n", rounds);
    return 0;
}

__attribute__((noinline)) void sleep_a_day(void)
{
    poll_wait(86400000000000, NULL);
    ticks++;
}

static int print(uint64_t bytes)
{
    char *text = guest_alloc(bytes);
    if (!text)
        return 1;
    memset(text, '.', bytes);
    console_write(text, bytes);
    printf("printed\n");
    return 0;
}

static inline __attribute__((always_inline)) uint64_t value_of(volatile const struct node *node)
{
    return node->value;
}

static inline __attribute__((always_inline)) uint64_t sum_of(volatile const struct node *node)
{
    return value_of(node) + 1;
}

__attribute__((noinline)) uint64_t total(volatile const struct node *node, int times)
{
    uint64_t sum = 0;
    for (int i = 0; i < times; i++)
        sum += sum_of(node);
    return sum * 3;
}

__attribute__((noinline)) int divide(volatile int by)
{
    return 1000 / by;
}

__attribute__((noinline)) void invalid(void)
{
    __asm__ volatile("ud2");
}

/* An IDT of one usable gate, number 6, whose handler faults with #UD itself. */
__attribute__((noinline)) void wedge(void)
{
    static struct {
        uint16_t offset_low, selector;
        uint8_t ist, type;
        uint16_t offset_middle;
        uint32_t offset_high, zero;
    } gates[7];
    static const struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) table = {sizeof gates - 1, (uint64_t)(uintptr_t)gates};
    const uint64_t handler = (uint64_t)(uintptr_t)invalid;
    gates[6].offset_low = (uint16_t)handler;
    gates[6].selector = 8;
    gates[6].ist = 1; /* a stack that begins anew at each fault, so that it never overflows */
    gates[6].type = 0x8e;
    gates[6].offset_middle = (uint16_t)(handler >> 16);
    gates[6].offset_high = (uint32_t)(handler >> 32);
    __asm__ volatile("lidt %0" : : "m"(table));
    invalid();
}

/* Counts its calls, and sets RF for the instruction that it returns to. */
volatile uint64_t steps_taken;
__attribute__((naked)) static void step_taken(void)
{
    __asm__("incq steps_taken(%rip)\n\t"
            "orl $0x10000, 16(%rsp)\n\t"
            "iretq");
}

__attribute__((noinline)) int steps(uint64_t rounds)
{
    static struct {
        uint16_t offset_low, selector;
        uint8_t ist, type;
        uint16_t offset_middle;
        uint32_t offset_high, zero;
    } gates[2];
    static const struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) table = {sizeof gates - 1, (uint64_t)(uintptr_t)gates};
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) before;
    const uint64_t handler = (uint64_t)(uintptr_t)step_taken;
    gates[1].offset_low = (uint16_t)handler;
    gates[1].selector = 8;
    gates[1].type = 0x8e;
    gates[1].offset_middle = (uint16_t)(handler >> 16);
    gates[1].offset_high = (uint32_t)(handler >> 32);
    __asm__ volatile("sidt %[before]\n\t"
                     "lidt %[table]\n\t"
                     "sub $256, %%rsp\n\t"
                     "pushq $0x102\n\t"
                     "popfq\n\t"
                     "1: dec %[rounds]\n\t"
                     "jnz 1b\n\t"
                     "pushq $2\n\t"
                     "popfq\n\t"
                     "add $256, %%rsp\n\t"
                     "lidt %[before]"
                     : [before] "=m"(before), [rounds] "+r"(rounds)
                     : [table] "m"(table)
                     : "memory", "cc");
    printf("steps %lu\n", steps_taken);
    return 0;
}

__attribute__((noinline)) int vectors(uint64_t rounds)
{
    uint64_t lanes[2] __attribute__((aligned(16))) = {3, 5};
    __asm__ volatile("movdqa %[lanes], %%xmm5\n\t"
                     "movdqa %[lanes], %%xmm6\n\t"
                     "1: paddq %%xmm5, %%xmm6\n\t"
                     "dec %[rounds]\n\t"
                     "jnz 1b\n\t"
                     "movdqa %%xmm6, %[lanes]"
                     : [lanes] "+m"(lanes), [rounds] "+r"(rounds)
                     :
                     : "xmm5", "xmm6", "cc");
    printf("lanes %lu %lu\n", lanes[0], lanes[1]);
    return 0;
}

/* Reading CR0 is privileged: the sandbox emulates it, after a signal. */
__attribute__((noinline)) int privileged(uint64_t count)
{
    uint64_t cr0, all = 0;
    for (; count; count--) {
        __asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
        all |= cr0;
    }
    printf("done%s\n", all & 1 ? "" : ": not in protected mode");
    return 0;
}

int main(int argc, char **argv)
{
    const char *what = argc > 0 ? argv[0] : "spin";
    uint64_t number = 1;
    if (argc > 1 && !number_parse(argv[1], &number))
        return 2;
    for (unsigned i = 0; i < 4; i++)
        nodes[i] = (struct node){i < 3 ? &nodes[i + 1] : NULL, i};
    printf("ready\n");
    if (!strcmp(what, "poll"))
        return wait(number);
    if (!strcmp(what, "sleep"))
        sleep_a_day();
    if (!strcmp(what, "print"))
        return print(number);
    if (!strcmp(what, "fault"))
        printf("%lu\n", total(missing, 2));
    if (!strcmp(what, "divide"))
        return divide(0);
    if (!strcmp(what, "invalid"))
        invalid();
    if (!strcmp(what, "wedge"))
        wedge();
    if (!strcmp(what, "vectors"))
        return vectors(number);
    if (!strcmp(what, "steps"))
        return steps(number);
    if (!strcmp(what, "privileged"))
        return privileged(number);
    if (!strcmp(what, "halt"))
        __asm__ volatile("hlt");
    return spin(number);
}
