/*
 * debug_syscall: a system call for a debugger, which lets a thread of this process make one.
 *
 * The debugger sets the thread's registers, with RIP here, and stops it at the instruction after the call. If
 * the debugger is killed in between, the thread stays in that jump, and does nothing, until the debugger's
 * guard gives it its registers back (tender/debug/guard.py). No code of ours comes here.
 */
#include "debug_note.inc"

    .text
    .balign 16
    .globl  debug_syscall
    .hidden debug_syscall
    .type   debug_syscall, @function
debug_syscall:
    syscall
1:
    jmp     1b
    .size   debug_syscall, . - debug_syscall

    debug_address syscall, debug_syscall

    .section .note.GNU-stack, "", @progbits
