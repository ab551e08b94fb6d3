/*
 * The two ways to leave the guest. A slot of the gate page is a function. A call site is exactly
 *
 *     ba 0N 05 00 00      mov $0x50N, %edx
 *     ef                  out %eax, (%dx)
 *
 * with the address of the structure in EAX. These are six bytes of a known form, and a host can
 * replace the first five with a `jmp rel32`. Keep the two instructions together, and keep the port
 * an immediate.
 */
#include "gate.h"

/*
 * "memory": the tender reads and writes the structure and the data that it points to. Nothing else
 * changes: an `out` that exits keeps all registers, and a patched call site must do so too (except
 * EDX).
 */
#define GATE_SITE(number, call)                                                                              \
    __asm__ volatile("mov %[port], %%edx\n\tout %%eax, (%%dx)"                                               \
                     :                                                                                       \
                     : "a"((uint32_t)gpa_of(call)), [port] "i"(HVT_PORT_BASE + (number))                     \
                     : "edx", "memory")

static uintptr_t gate_page; /* 0: the tender offers none */
static uint32_t features;   /* 0 without a gate page */

static inline void (*gate_slot(uintptr_t page, uint32_t number))(uint32_t)
{
    return (void (*)(uint32_t))(page + number * TENDER_GATE_SLOT_BYTES);
}

/*
 * Costs one load, and a branch that always goes the same way. A slot may change the registers that
 * a C function may change.
 */
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

/* The same instructions as for a hypercall, but the port is not a hypercall's, and there is no answer. */
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
    __asm__ volatile("" : : : "memory"); /* the compiler must finish all writes to the structures first */
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
