/*
 * guarded_copy(to RDI, from RSI, words RDX): copies words of eight bytes; RAX: how many it could not.
 *
 * One of its sides is a mapped file, and a page of it that cannot be had (the file was cut short, its medium
 * fails, there is no space to write it) is a SIGBUS. Whoever holds that signal sets RIP from
 * guarded_copy_may_fault
 * to guarded_copy_ends: RCX is then what is left, for an interrupted string instruction leaves its registers
 * at the element that failed (Intel SDM volume 2, REP). disk_map.h declares the three.
 *
 * Clobbers RCX, RDI, RSI. No stack, no vector register, no thread-local storage: it also runs in a process
 * where those are a guest's.
 */
    .text
    .globl  guarded_copy
    .hidden guarded_copy
    .type   guarded_copy, @function
guarded_copy:
    mov     %rdx, %rcx
    .globl  guarded_copy_may_fault
    .hidden guarded_copy_may_fault
guarded_copy_may_fault:
    rep movsq
    .globl  guarded_copy_ends
    .hidden guarded_copy_ends
guarded_copy_ends:
    mov     %rcx, %rax
    ret
    .size   guarded_copy, . - guarded_copy

    .section .note.GNU-stack, "", @progbits
