/*
 * The gate's sites. Each is exactly
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

void gate_walltime(struct hvt_walltime *call)
{
    GATE_SITE(HVT_HYPERCALL_WALLTIME, call);
}
void gate_puts(struct hvt_puts *call)
{
    GATE_SITE(HVT_HYPERCALL_PUTS, call);
}
void gate_poll(struct hvt_poll *call)
{
    GATE_SITE(HVT_HYPERCALL_POLL, call);
}
void gate_block_write(struct hvt_block_write *call)
{
    GATE_SITE(HVT_HYPERCALL_BLOCK_WRITE, call);
}
void gate_block_read(struct hvt_block_read *call)
{
    GATE_SITE(HVT_HYPERCALL_BLOCK_READ, call);
}
void gate_net_write(struct hvt_net_write *call)
{
    GATE_SITE(HVT_HYPERCALL_NET_WRITE, call);
}
void gate_net_read(struct hvt_net_read *call)
{
    GATE_SITE(HVT_HYPERCALL_NET_READ, call);
}

_Noreturn void gate_halt(struct hvt_halt *call)
{
    for (;;) {
        GATE_SITE(HVT_HYPERCALL_HALT, call);
    }
}
