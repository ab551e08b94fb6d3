/*
 * What a guest finds in the gate page.
 *
 *     gate.elf            prints "granted" or "none". If the gate is granted, calls slots and plain `out`
 *                         call sites and compares them. Status 0 and "gate: OK"
 *     gate.elf --wild     prints from an address outside of memory, by the library: the monitor names the
 *                         address of the caller
 */
#include <tender/guest.h>

#include "gate.h"

TENDER_MANIFEST(0);

#define CALLS   1000
#define NEAR_NS 60000000000 /* limit for two readings of the wall clock in sequence on a busy host */

static const struct tender_extension *const block = (const struct tender_extension *)TENDER_EXTENSION_GPA;

/*
 * uint64_t slot_call_checked(uint64_t slot, uint32_t gpa): calls the slot with known values in all
 * registers that a call preserves. Returns 0 if the values are unchanged and the direction flag is
 * clear.
 *
 * In: RDI, ESI. Out: RAX. Clobbers what a call may.
 */
__asm__(".pushsection .text, \"ax\", @progbits\n"
        ".type slot_call_checked, @function\n"
        "slot_call_checked:\n\t"
        "push %rbx\n\t"
        "push %rbp\n\t"
        "push %r12\n\t"
        "push %r13\n\t"
        "push %r14\n\t"
        "push %r15\n\t"
        "sub $8, %rsp\n\t" /* 16-byte aligned at the call */
        "mov %rsp, stack_before(%rip)\n\t"
        "mov %rdi, %rax\n\t"
        "mov %esi, %edi\n\t"
        "mov $0x11111111, %rbx\n\t"
        "mov $0x22222222, %rbp\n\t"
        "mov $0x33333333, %r12\n\t"
        "mov $0x44444444, %r13\n\t"
        "mov $0x55555555, %r14\n\t"
        "mov $0x66666666, %r15\n\t"
        "call *%rax\n\t"
        "mov %rsp, %rax\n\t" /* each difference is zero, or a bit of the answer */
        "mov stack_before(%rip), %rsp\n\t"
        "sub %rsp, %rax\n\t"
        "sub $0x11111111, %rbx\n\t"
        "or %rbx, %rax\n\t"
        "sub $0x22222222, %rbp\n\t"
        "or %rbp, %rax\n\t"
        "sub $0x33333333, %r12\n\t"
        "or %r12, %rax\n\t"
        "sub $0x44444444, %r13\n\t"
        "or %r13, %rax\n\t"
        "sub $0x55555555, %r14\n\t"
        "or %r14, %rax\n\t"
        "sub $0x66666666, %r15\n\t"
        "or %r15, %rax\n\t"
        "pushf\n\t"
        "pop %rcx\n\t"
        "and $0x400, %ecx\n\t"
        "or %rcx, %rax\n\t"
        "add $8, %rsp\n\t"
        "pop %r15\n\t"
        "pop %r14\n\t"
        "pop %r13\n\t"
        "pop %r12\n\t"
        "pop %rbp\n\t"
        "pop %rbx\n\t"
        "ret\n"
        ".size slot_call_checked, . - slot_call_checked\n"
        ".popsection\n"
        ".local stack_before\n"
        ".comm stack_before, 8, 8\n");
uint64_t slot_call_checked(uint64_t slot, uint32_t gpa);

static uint64_t slot(uint32_t number)
{
    return block->gate + number * TENDER_GATE_SLOT_BYTES;
}

static void slot_call(uint32_t number, const void *call)
{
    ((void (*)(uint32_t))(uintptr_t)slot(number))((uint32_t)gpa_of(call));
}

static uint64_t walltime_by_out(void)
{
    static struct hvt_walltime call;
    call.nsecs = 0;
    __asm__ volatile("mov %[port], %%edx\n\tout %%eax, (%%dx)"
                     :
                     : "a"((uint32_t)gpa_of(&call)), [port] "i"(HVT_PORT_BASE + HVT_HYPERCALL_WALLTIME)
                     : "edx", "memory");
    return call.nsecs;
}

static uint64_t walltime_by_slot(void)
{
    static volatile struct hvt_walltime call; /* volatile: the compiler sees only that a number is passed */
    call.nsecs = 0;
    slot_call(HVT_HYPERCALL_WALLTIME, (const void *)&call);
    return call.nsecs;
}

/* Carry, overflow, direction and alignment check (which has no effect without CR0.AM): all flags
 * that a caller may set. */
#define ODD_FLAGS 0x40c03

/* Returns the flags after a call by `out`, patched or not, that is made with ODD_FLAGS. */
static uint64_t flags_behind_out(void)
{
    static struct hvt_walltime call;
    uint64_t flags;
    __asm__ volatile("push %[odd]\n\t"
                     "popfq\n\t"
                     "mov %[port], %%edx\n\tout %%eax, (%%dx)\n\t"
                     "pushfq\n\t"
                     "pop %[flags]\n\t"
                     "push $2\n\t"
                     "popfq"
                     : [flags] "=&r"(flags)
                     : "a"((uint32_t)gpa_of(&call)), [port] "i"(HVT_PORT_BASE + HVT_HYPERCALL_WALLTIME),
                       [odd] "i"(ODD_FLAGS)
                     : "edx", "memory", "cc");
    return call.nsecs ? flags : 0;
}

static const char *failure(void)
{
    static struct hvt_walltime call;

    uint64_t by_slot = walltime_by_slot();
    uint64_t by_out = walltime_by_out();
    if (by_slot == 0 || by_out == 0) {
        return "no time";
    }
    if (by_out + NEAR_NS < by_slot || by_slot + NEAR_NS < by_out) {
        return "slot and `out` do not agree about the time";
    }
    if (slot_call_checked(slot(HVT_HYPERCALL_WALLTIME), (uint32_t)gpa_of(&call)) != 0) {
        return "a slot changed what a call keeps";
    }
    if ((flags_behind_out() & ODD_FLAGS) != ODD_FLAGS) {
        return "an `out` changed the caller's flags";
    }
    for (unsigned i = 0; i < CALLS; i++) {
        if (walltime_by_slot() == 0) {
            return "no time after many calls";
        }
    }

    static const char text[] = "gate: printed by its slot\n";
    static volatile struct hvt_puts puts_call = {.len = sizeof(text) - 1};
    puts_call.data = gpa_of(text);
    slot_call(HVT_HYPERCALL_PUTS, (const void *)&puts_call);

    static volatile struct hvt_poll poll_call = {.timeout_nsecs = 1000000, .ret = -1};
    slot_call(HVT_HYPERCALL_POLL, (const void *)&poll_call);
    return poll_call.ret == 0 ? NULL : "poll did not answer 0";
}

int main(int argc, char **argv)
{
    bool granted = block->magic == TENDER_EXTENSION_MAGIC;
    printf("gate: %s\n", granted ? "granted" : "none");
    if (args_has(argc, argv, "--wild")) {
        struct hvt_puts call = {.data = guest_memory_bytes(), .len = 1};
        gate_puts(&call);
    }
    if (!granted) {
        const uint32_t *words = (const uint32_t *)TENDER_EXTENSION_GPA;
        const unsigned count = (TENDER_GATE_BACKEND_GPA - TENDER_EXTENSION_GPA) / sizeof(*words);
        for (unsigned i = 0; i < count; i++) { /* the words after it belong to the backend */
            if (words[i] != 0) {
                printf("gate: FAILED: %#x at word %u of what was not granted\n", words[i], i);
                return 1;
            }
        }
        bool told = walltime_by_out() > 0;
        printf("gate: %s\n", told ? "OK" : "FAILED: no time by `out`");
        return told ? 0 : 1;
    }
    if (block->version != TENDER_EXTENSION_VERSION || !(block->features & TENDER_FEATURE_GATE) ||
        block->reserved != 0 || block->gate != TENDER_GATE_GPA) {
        printf("gate: FAILED: version %u features %#x gate %#lx\n", block->version, block->features,
               block->gate);
        return 1;
    }
    const char *what = failure();
    printf("gate: %s%s\n", what ? "FAILED: " : "OK", what ? what : "");
    return what ? 1 : 0;
}
