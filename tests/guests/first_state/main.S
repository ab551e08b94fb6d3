/*
 * Stores every register that ring 0 can read, from the very first instruction on and before any C.
 * Writes the 1536 raw bytes of `state` to the console, and ends with 0. test_vcpu_state.py
 * describes the same layout in words.
 *
 * Nothing of the guest library is linked in: _start is here, and no note of ours asks for the gate.
 */
#include "tender_abi.h"

#define MSR_EFER           0xc0000080
#define MSR_FS_BASE        0xc0000100
#define MSR_GS_BASE        0xc0000101
#define MSR_KERNEL_GS_BASE 0xc0000102

#define SYSTEM  (state + 0x80)
#define DTABLES (state + 0x100)
#define FXSAVE  (state + 0x200)
#define TLS     (state + 0x400)

    .macro store_msr number, slot
    mov     $\number, %ecx
    rdmsr
    mov     %eax, SYSTEM + 8 * \slot
    mov     %edx, SYSTEM + 8 * \slot + 4
    .endm

    .section .text.boot, "ax", @progbits
    .globl  _start
    .type   _start, @function
_start:
    mov     %rax, state + 0x00
    mov     %rbx, state + 0x08
    mov     %rcx, state + 0x10
    mov     %rdx, state + 0x18
    mov     %rsi, state + 0x20
    mov     %rdi, state + 0x28
    mov     %rbp, state + 0x30
    mov     %rsp, state + 0x38
    mov     %r8, state + 0x40
    mov     %r9, state + 0x48
    mov     %r10, state + 0x50
    mov     %r11, state + 0x58
    mov     %r12, state + 0x60
    mov     %r13, state + 0x68
    mov     %r14, state + 0x70
    mov     %r15, state + 0x78
    pushfq                      /* before anything that changes flags */
    popq    SYSTEM + 8 * 0
    fxsave64 FXSAVE             /* before anything that uses x87 or SSE */

    mov     %cr0, %rax
    mov     %rax, SYSTEM + 8 * 1
    mov     %cr2, %rax
    mov     %rax, SYSTEM + 8 * 2
    mov     %cr3, %rax
    mov     %rax, SYSTEM + 8 * 3
    mov     %cr4, %rax
    mov     %rax, SYSTEM + 8 * 4
    mov     %cr8, %rax
    mov     %rax, SYSTEM + 8 * 5
    store_msr MSR_EFER, 6
    store_msr MSR_FS_BASE, 7
    store_msr MSR_GS_BASE, 8
    store_msr MSR_KERNEL_GS_BASE, 9

    mov     %cs, SYSTEM + 8 * 10
    mov     %ss, SYSTEM + 8 * 10 + 2
    mov     %ds, SYSTEM + 8 * 10 + 4
    mov     %es, SYSTEM + 8 * 10 + 6
    mov     %fs, SYSTEM + 8 * 11
    mov     %gs, SYSTEM + 8 * 11 + 2
    sldt    SYSTEM + 8 * 11 + 4
    str     SYSTEM + 8 * 11 + 6
    sgdt    DTABLES
    sidt    DTABLES + 0x10

    /* a thread pointer, as at every switch of threads: the value 16 bytes below it is read through FS */
    mov     $MSR_FS_BASE, %ecx
    lea     TLS + 16, %rax
    xor     %edx, %edx
    wrmsr
    movabs  $0x1122334455667788, %rax
    mov     %rax, TLS
    mov     %fs:-16, %rbx
    mov     %rbx, SYSTEM + 8 * 12
    store_msr MSR_FS_BASE, 13

    /* SSE and x87 work without any set-up: 3 * 1.5 */
    mov     $3, %eax
    cvtsi2sd %eax, %xmm0
    mulsd   half_more, %xmm0
    movsd   %xmm0, SYSTEM + 8 * 14

    mov     $puts_call, %eax
    mov     $(HVT_PORT_BASE + HVT_HYPERCALL_PUTS), %edx
    out     %eax, (%dx)
    mov     $halt_call, %eax
    mov     $(HVT_PORT_BASE + HVT_HYPERCALL_HALT), %edx
    out     %eax, (%dx)
    ud2
    .size   _start, . - _start

    .data
    .balign 16
    .type   state, @object
state:
    .fill   0x600, 1, 0xaa      /* shows what is not stored */
    .size   state, . - state
    .balign 8
puts_call:
    .quad   state, 0x600
halt_call:
    .quad   0, 0

    .section .rodata, "a", @progbits
    .balign 8
half_more:
    .double 1.5

    .section .note.solo5.abi, "a", @note
    .balign 4
    .long   6, 16, HVT_NOTE_ABI_TYPE
    .ascii  "Solo5\0\0\0"
    .long   HVT_ABI_TARGET_HVT, HVT_ABI_VERSION, 0, 0

    .section .note.solo5.manifest, "a", @note
    .balign 8
    .long   6, 4 + 8 + 104, HVT_NOTE_MFT_TYPE
    .ascii  "Solo5\0\0\0"
    .long   0, MFT_VERSION, 1
    .fill   68, 1, 0            /* the reserved first entry: no name */
    .long   MFT_RESERVED_FIRST
    .fill   32, 1, 0

    .section .note.tender, "a", @note
    .globl  tender_extension_note
tender_extension_note:

    .section .note.GNU-stack, "", @progbits
