/*
 * Privileged instructions of the guest kernel: loading the descriptor tables, and reading CR2 in
 * the trap entries. (thread.c has the only other one, WRMSR.) The frame layout is struct trap_frame
 * in trap.c; change both together.
 */

/*
 * cpu_tables_load(const void *gdt_pointer, const void *idt_pointer, uint16_t tss_selector)
 * In: RDI, RSI = 10-byte pseudo-descriptors, DX = selector. Clobbers nothing. The new GDT has the
 * same code and data descriptors at the same selectors as the tender's GDT, so no segment register
 * needs a reload.
 */
    .section .text.traps, "ax", @progbits
    .globl  cpu_tables_load
    .type   cpu_tables_load, @function
cpu_tables_load:
    lgdt    (%rdi)
    lidt    (%rsi)
    ltr     %dx                 /* sets the descriptor's busy bit: the GDT must be writable */
    ret
    .size   cpu_tables_load, . - cpu_tables_load

/*
 * 32 entries, 16 bytes each. The CPU has switched to the IST stack and pushed SS, RSP, RFLAGS, CS, RIP and,
 * for vectors 8, 10-14, 17, 21, 29, 30, an error code; the others push a 0 in its place.
 */
    .balign 16
    .globl  trap_entries
    .type   trap_entries, @function
trap_entries:
    .set    vector, 0
    .rept   32
    .balign 16
    .if !((0x60227d00 >> vector) & 1)
    push    $0
    .endif
    push    $vector
    jmp     trap_common
    .set    vector, vector + 1
    .endr
    .size   trap_entries, . - trap_entries

/*
 * In: the stack holds vector, error code, and the words that the CPU pushed. All registers have the
 * values of the interrupted code.
 * Out: never returns. Calls trap_report(struct trap_frame *) in trap.c. RBX holds the frame, for debuggers.
 *
 * The frame is that of a signal, so a debugger's stack goes on with the interrupted instruction. The canonical
 * frame address (CFA) is the end of what the CPU pushed: SS, RSP, RFLAGS, CS and RIP lie below it in this order.
 */
    .cfi_sections .debug_frame   /* not loaded, as that of the C files */
    .macro  push_saved register
    push    %\register
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset \register, 0
    .endm

    .balign 16
    .type   trap_common, @function
trap_common:
    .cfi_startproc simple
    .cfi_signal_frame
    .cfi_def_cfa rsp, 7 * 8
    .cfi_offset rip, -5 * 8
    .cfi_offset rsp, -2 * 8
    push_saved rax
    push_saved rbx
    push_saved rcx
    push_saved rdx
    push_saved rsi
    push_saved rdi
    push_saved rbp
    push_saved r8
    push_saved r9
    push_saved r10
    push_saved r11
    push_saved r12
    push_saved r13
    push_saved r14
    push_saved r15
    mov     %cr2, %rax
    push    %rax
    .cfi_adjust_cfa_offset 8
    cld
    mov     %rsp, %rdi          /* the frame */
    mov     %rsp, %rbx
    .cfi_def_cfa_register rbx
    xor     %ebp, %ebp
    and     $-16, %rsp
    call    trap_report
    ud2
    .cfi_endproc
    .size   trap_common, . - trap_common

    .section .note.GNU-stack, "", @progbits
