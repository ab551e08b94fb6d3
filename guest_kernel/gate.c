/*
 * The two ways out. A slot of the gate page is a function; a site is exactly
 *
 *     ba 0N 05 00 00      mov $0x50N, %edx
 *     ef                  out %eax, (%dx)
 *
 * with the address of the structure in EAX: six bytes of a known shape, whose first five can become a
 * `jmp rel32`. Keep the two instructions together and the port an immediate.
 */
#include "gate.h"

/*
 * "memory": the tender reads and writes the structure and what it points to. Nothing else changes: an `out`
 * that exits keeps all registers, and the patched form must too (EDX excepted).
 */
#define GATE_SITE(number, call)                                                                              \
    __asm__ volatile("mov %[port], %%edx\n\tout %%eax, (%%dx)"                                               \
                     :                                                                                       \
                     : "a"((uint32_t)gpa_of(call)), [port] "i"(HVT_PORT_BASE + (number))                     \
                     : "edx", "memory")

static uintptr_t gate_page; /* 0: there is none */
static uint32_t features;   /* 0 without a gate page */

static inline void (*gate_slot(uintptr_t page, uint32_t number))(uint32_t)
{
    return (void (*)(uint32_t))(page + number * TENDER_GATE_SLOT_BYTES);
}

/* One load and a branch that always goes the same way; the slot may change what any C function may. */
#define GATE(number, call)                                                                                   \
    do {                                                                                                     \
        const uintptr_t page = gate_page;                                                                    \
        if (page) {                                                                                          \
            gate_slot(page, number)((uint32_t)gpa_of(call));                                                 \
        } else {                                                                                             \
            GATE_SITE(number, call);                                                                         \
        }                                                                                                    \
    } while (0)

void gate_init(void)
{
    const struct tender_extension *block = (const struct tender_extension *)TENDER_EXTENSION_GPA;
    if (block->magic == TENDER_EXTENSION_MAGIC && block->version == TENDER_EXTENSION_VERSION &&
        (block->features & TENDER_FEATURE_GATE)) {
        gate_page = block->gate;
        features = block->features;
    }
}

/* Of the same shape as the others, but the port is not that of a hypercall, and no answer comes back. */
void gate_net_kick(void)
{
    __asm__ volatile("mov %[port], %%edx\n\tout %%eax, (%%dx)"
                     :
                     : "a"(0), [port] "i"(HVT_PORT_NET_KICK)
                     : "edx", "memory");
}

static bool gate_ours(uint32_t feature, uint32_t number, const volatile void *call)
{
    if (!(features & feature)) {
        return false;
    }
    __asm__ volatile("" : : : "memory"); /* what was written to the structures is there */
    gate_slot(gate_page, number)((uint32_t)gpa_of(call));
    __asm__ volatile("" : : : "memory");
    return true;
}

#define HYPERCALL(number, name, structure, access, feature, device)                                          \
    void gate_##name(structure *call)                                                                        \
    {                                                                                                        \
        GATE(number, call);                                                                                  \
    }
#define EXTENSION_HYPERCALL(number, name, structure, access, feature, device)                                \
    bool gate_##name(structure *call)                                                                        \
    {                                                                                                        \
        return gate_ours(feature, number, call);                                                             \
    }
#include "hypercalls.def"
