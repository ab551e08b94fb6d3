/*
 * The first instruction of a unikernel.
 *
 * In:  RDI = boot info (hvt_boot_info), RSP = memory size - 8, CS 0x8 and data segments 0x10 flat,
 *      long mode, identity-mapped memory, interrupts off, bss zero, SSE on. All other registers 0.
 * Out: never returns. Calls guest_start() in start.c with RDI unchanged.
 */
    .section .text.boot, "ax", @progbits
    .globl  _start
    .type   _start, @function
_start:
    xor     %ebp, %ebp          /* marks the outermost frame for a debugger */
    sub     $8, %rsp            /* the psABI wants RSP 16-byte aligned at a call */
    cld
    call    guest_start
    ud2                         /* guest_start() does not return */
    .size   _start, . - _start

    .section .note.GNU-stack, "", @progbits
