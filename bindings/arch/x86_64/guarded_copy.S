/*
 * guarded_copy(to RDI, from RSI, words RDX): copies words of eight bytes. RAX: how many were not
 * copied.
 *
 * One of the two sides is a mapped file. A page of it that does not exist (the file was truncated,
 * its medium fails, there is no space to write it) causes a SIGBUS. The handler of that signal
 * changes RIP from guarded_copy_may_fault to guarded_copy_ends. RCX is then the number of words
 * that are left, because an interrupted string instruction leaves its registers at the element that
 * failed (Intel SDM volume 2, REP). guarded_copy.h declares the three symbols.
 *
 * Clobbers RCX, RDI, RSI. It uses no stack, no vector register and no thread-local storage, because
 * it also runs in a process where those belong to a guest.
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
