/*
 * From the first C instruction to main() and out again, and the ABI note that every unikernel carries.
 */
#include "kernel.h"

/* guest.ld: the first page behind the image. */
extern uint8_t guest_image_end[];

TENDER_ABI_NOTE;

/* guest.ld makes it the PT_INTERP: a host kernel that is told to execute the file finds no such program. */
__attribute__((section(".interp.tender"), used)) static const char interpreter[] = "/nonexistent/tender/";

_Noreturn void guest_start(const struct hvt_boot_info *boot)
{
    trap_init(); /* first: from here on a fault says what it is */
    gate_init();
    clock_init(boot->cpu_cycle_freq);
    manifest_init((const struct mft *)(uintptr_t)boot->mft);

    uintptr_t heap_from = (uintptr_t)guest_image_end;
    uintptr_t heap_to = boot->mem_size > GUEST_STACK_BYTES ? boot->mem_size - GUEST_STACK_BYTES : 0;
    if (heap_to < heap_from + HVT_PAGE_BYTES) {
        panic("start: %lu bytes of memory do not hold an image that ends at %#lx and a stack of %u",
              boot->mem_size, heap_from, (unsigned)GUEST_STACK_BYTES);
    }
    memory_init(heap_from, heap_to, boot->mem_size);

    char **argv;
    int argc = cmdline_init((const char *)(uintptr_t)boot->cmdline, &argv);
    guest_exit(main(argc, argv));
}

_Noreturn void guest_exit(int status)
{
    if (net_queues_flush) {
        net_queues_flush();
    }
    struct hvt_halt halt = {.cookie = 0, .exit_status = status};
    gate_halt(&halt);
}
