/*
 * The transitions between the guest and the handlers: the program's first instruction, the guest's first, a
 * hypercall by a patched call site, a hypercall by the gate, a system call, the return from a signal.
 *
 * All registers belong to the guest: a hypercall by a patched call site returns with every register, every
 * flag and the red zone as the guest left them. The handlers are compiled to use only general registers, so
 * vector registers need not be saved. The handlers have a stack of their own. The only
 * value of the guest's registers that they use is EAX, a number that is checked.
 *
 * The unwind tables (.cfi_...) are for debuggers: from any instruction of the handlers they lead to the guest's
 * registers, as if the handler were a function that the guest has called. Nothing reads them in a run.
 */
#include "debug_note.inc"

    .set    HVT_PORT_BASE, 0x500
    .set    TRAMPOLINE_RETURN, 12             /* bindings/machine/sandbox/patch.c lays the trampolines out */
    .set    TRAMPOLINE_NUMBER, 16
    .set    HANDLER_STACK_BYTES, 65536
    .set    FLAGS_NOT_FOR_C, 0x44500    /* alignment check, nested task, direction (down), single step */
    .set    SAVED_FLAGS, 72             /* entry_patched: nine registers lie below it */

    /* A signal's frame: struct ucontext of asm/ucontext.h, struct _fpx_sw_bytes of asm/sigcontext.h. */
    .set    UC_R8, 40
    .set    UC_R9, 48
    .set    UC_R10, 56
    .set    UC_R11, 64
    .set    UC_R12, 72
    .set    UC_R13, 80
    .set    UC_R14, 88
    .set    UC_R15, 96
    .set    UC_RDI, 104
    .set    UC_RSI, 112
    .set    UC_RBP, 120
    .set    UC_RBX, 128
    .set    UC_RDX, 136
    .set    UC_RAX, 144
    .set    UC_RCX, 152
    .set    UC_RSP, 160
    .set    UC_RIP, 168
    .set    UC_FLAGS, 176
    .set    UC_CS, 184
    .set    UC_SS, 190
    .set    UC_FPSTATE, 224
    .set    FP_XSTATE_MAGIC1, 0x46505853
    .set    FP_MAGIC1, 464
    .set    FP_XFEATURES, 472

/*
 * A call with a return would be correct too, but slow. A processor predicts a return from the calls that
 * it has seen last, and after a system call these are the kernel's. It predicts a jump from what that
 * jump did before. So there is no call from the guest to the system call and back: C functions on that
 * path return by __x86_return_thunk.
 */
    .macro  enter function
    lea     1000f(%rip), %rax
    push    %rax
    .cfi_adjust_cfa_offset 8
    .byte   0xe9                /* jmp function. The tables change within it: an unwinder looks for the byte */
    .cfi_adjust_cfa_offset -8   /* before the address that the function returns to */
    .long   \function - . - 4
1000:
    .endm

    /*
     * Expressions of the unwind tables: DW_CFA_val_expression (22), which gives a register's value, and
     * DW_CFA_expression (16), which gives the place of it; the register's number in DWARF; the length; then
     * operations, which find the canonical frame address (CFA) on their stack. For the guest's call of a
     * handler the CFA is handler_stack_top, where guest_rsp lies, with guest_rip behind it.
     */
#define DWARF_RDX   1
#define DWARF_RSP   7
#define DWARF_RIP   16
#define DWARF_FLAGS 49

    /* The guest's RSP and RIP are in guest_rsp and guest_rip. */
    .macro  cfi_guest_place
    .cfi_offset DWARF_RSP, 0
    .cfi_offset DWARF_RIP, 8
    .endm

    /* The last instruction: RIP is in guest_rip, by an address relative to this one. */
    .macro  cfi_guest_left
    .cfi_undefined DWARF_RIP
    .endm

    /* RIP and RDX are not stored yet: they are in the trampoline, to which RDX points. */
    .macro  cfi_guest_trampoline
    .cfi_escape 22, DWARF_RIP, 4, 0x71, TRAMPOLINE_RETURN, 0x94, 4                   /* breg1, deref_size 4 */
    .cfi_escape 22, DWARF_RDX, 7, 0x71, TRAMPOLINE_NUMBER, 0x94, 4, 0x23, 0x80, 0x0a /* plus_uconst 0x500 */
    .endm

    .data
    .globl  flags_by_popf
    .hidden flags_by_popf
flags_by_popf:                      /* a guest with one of these gets its flags by POPF, others by SAHF */
    .long   FLAGS_NOT_FOR_C

    .bss
    .balign 4096
handler_stack:
    .skip   HANDLER_STACK_BYTES
    .globl  handler_stack_top
    .hidden handler_stack_top
handler_stack_top:
    .globl  guest_rsp
    .hidden guest_rsp
guest_rsp:                          /* first, and guest_rip behind it: the unwind tables rely on that */
    .skip   8
    .globl  guest_rip
    .hidden guest_rip
guest_rip:                          /* after the gate: its port */
    .skip   8
guest_gpa:                          /* EAX at the gate, for a debugger: the unwind tables have it for a call site */
    .skip   4

    .text
/*
 * In: the kernel's state at the start of a process: RSP = argc, argv, envp, auxv.
 * Out: never returns. Enters program_start() in main.c with RDI = RSP.
 */
    .globl  _start
    .type   _start, @function
_start:
    .cfi_startproc
    .cfi_undefined DWARF_RIP
    xor     %ebp, %ebp
    mov     %rsp, %rdi
    and     $-16, %rsp
    call    program_start
    ud2
    .cfi_endproc
    .size   _start, . - _start

/*
 * enter_guest(entry RDI, stack RSI, argument RDX): the guest's first instruction, with the start state's
 * registers. Never returns.
 */
    .globl  enter_guest
    .hidden enter_guest
    .type   enter_guest, @function
enter_guest:
    .cfi_startproc
    .cfi_undefined DWARF_RIP
    mov     %rdi, guest_rip(%rip)
    mov     %rsi, guest_rsp(%rip)
    mov     %rdx, %rdi
    lea     handler_stack_top(%rip), %rsp
    xor     %eax, %eax
    xor     %ebx, %ebx
    xor     %ecx, %ecx
    xor     %edx, %edx
    xor     %esi, %esi
    xor     %ebp, %ebp
    xor     %r8d, %r8d
    xor     %r9d, %r9d
    xor     %r10d, %r10d
    xor     %r11d, %r11d
    xor     %r12d, %r12d
    xor     %r13d, %r13d
    xor     %r14d, %r14d
    xor     %r15d, %r15d
    push    $2
    popfq
    mov     guest_rsp(%rip), %rsp
    jmp     *guest_rip(%rip)
    .cfi_endproc
enter_guest_end:
    .size   enter_guest, . - enter_guest

/*
 * A patched call site. In: EDX = address of its trampoline, EAX = gpa; everything else is the guest's.
 * Out: continues after the `out`, with EDX = port. Enters handle_hypercall() in main.c.
 */
    .globl  entry_patched
    .hidden entry_patched
    .type   entry_patched, @function
entry_patched:
    .cfi_startproc
    .cfi_signal_frame
    .cfi_def_cfa rsp, 0         /* no frame yet: the registers are the guest's */
    .cfi_same_value rsp
    cfi_guest_trampoline
    mov     %rsp, guest_rsp(%rip)
    lea     handler_stack_top(%rip), %rsp
    .cfi_offset DWARF_RSP, 0
    pushfq
    .cfi_adjust_cfa_offset 8
    .cfi_offset DWARF_FLAGS, -8
    push    %rax
    .cfi_adjust_cfa_offset 8
    .cfi_offset rax, -16
    push    %rcx
    .cfi_adjust_cfa_offset 8
    .cfi_offset rcx, -24
    push    %rsi
    .cfi_adjust_cfa_offset 8
    .cfi_offset rsi, -32
    push    %rdi
    .cfi_adjust_cfa_offset 8
    .cfi_offset rdi, -40
    push    %r8
    .cfi_adjust_cfa_offset 8
    .cfi_offset r8, -48
    push    %r9
    .cfi_adjust_cfa_offset 8
    .cfi_offset r9, -56
    push    %r10
    .cfi_adjust_cfa_offset 8
    .cfi_offset r10, -64
    push    %r11
    .cfi_adjust_cfa_offset 8
    .cfi_offset r11, -72
    mov     TRAMPOLINE_RETURN(%rdx), %ecx
    mov     TRAMPOLINE_NUMBER(%rdx), %edi
    mov     %rcx, guest_rip(%rip)
    .cfi_offset DWARF_RIP, 8
    mov     %eax, %esi
    lea     HVT_PORT_BASE(%rdi), %edx
    .cfi_same_value rdx
    push    %rdx
    .cfi_adjust_cfa_offset 8
    .cfi_offset rdx, -80
    testl   $FLAGS_NOT_FOR_C, SAVED_FLAGS(%rsp)
    jz      1f
    push    $2
    .cfi_adjust_cfa_offset 8
    popfq
    .cfi_adjust_cfa_offset -8
1:
    enter   handle_hypercall
    .globl  entry_patched_back
    .hidden entry_patched_back
entry_patched_back:
    pop     %rdx
    .cfi_adjust_cfa_offset -8
    .cfi_same_value rdx
    pop     %r11
    .cfi_adjust_cfa_offset -8
    .cfi_same_value r11
    pop     %r10
    .cfi_adjust_cfa_offset -8
    .cfi_same_value r10
    pop     %r9
    .cfi_adjust_cfa_offset -8
    .cfi_same_value r9
    pop     %r8
    .cfi_adjust_cfa_offset -8
    .cfi_same_value r8
    pop     %rdi
    .cfi_adjust_cfa_offset -8
    .cfi_same_value rdi
    pop     %rsi
    .cfi_adjust_cfa_offset -8
    .cfi_same_value rsi
    pop     %rcx
    .cfi_adjust_cfa_offset -8
    .cfi_same_value rcx
    mov     8(%rsp), %eax
    test    %eax, flags_by_popf(%rip)
    jnz     2f
    xchg    %al, %ah            /* POPF is slow. AH: SF ZF AF PF CF; AL: OF as bit 3; others are unchanged */
    shr     $3, %al
    and     $1, %al
    add     $0x7f, %al          /* 0x80, an overflow, if OF was set */
    sahf
    mov     (%rsp), %rax
    .cfi_remember_state
    .cfi_same_value rax
    .cfi_same_value DWARF_FLAGS
    mov     guest_rsp(%rip), %rsp
    .cfi_def_cfa rsp, 0
    .cfi_same_value rsp
    cfi_guest_left
    jmp     *guest_rip(%rip)
    .cfi_restore_state
2:
    pop     %rax
    .cfi_adjust_cfa_offset -8
    .cfi_same_value rax
    popfq
    .cfi_adjust_cfa_offset -8
    .cfi_same_value DWARF_FLAGS
    mov     guest_rsp(%rip), %rsp
    .cfi_def_cfa rsp, 0
    .cfi_same_value rsp
    cfi_guest_left
    jmp     *guest_rip(%rip)
    .cfi_endproc
entry_patched_end:
    .size   entry_patched, . - entry_patched

/*
 * The gate. In: as for a C call: EAX = gpa, EDX = port, the return address on the guest's stack.
 * Out: returns; it may change what a C call may change. Enters handle_hypercall() in main.c.
 */
    .globl  entry_gate
    .hidden entry_gate
    .type   entry_gate, @function
entry_gate:
    .cfi_startproc
    mov     %rsp, guest_rsp(%rip)
    lea     handler_stack_top(%rip), %rsp
    .cfi_def_cfa rsp, 0
    .cfi_escape 16, DWARF_RIP, 1, 0x06               /* RIP is where guest_rsp points (deref), */
    .cfi_escape 22, DWARF_RSP, 3, 0x06, 0x23, 8      /* and RSP is behind it (deref, plus_uconst 8) */
    lea     -HVT_PORT_BASE(%rdx), %edi
    mov     %eax, %esi
    mov     %edx, guest_rip(%rip)   /* its upper half stays 0: handle_exit_of_call() in main.c */
    mov     %eax, guest_gpa(%rip)
    cld
    enter   handle_hypercall
    .globl  entry_gate_back
    .hidden entry_gate_back
entry_gate_back:
    mov     guest_rsp(%rip), %rsp
    .cfi_def_cfa rsp, 8
    .cfi_offset DWARF_RIP, -8
    .cfi_restore rsp
    ret
    .cfi_endproc
entry_gate_end:
    .size   entry_gate, . - entry_gate

/*
 * The program's syscall instruction. In: the kernel's registers, and on the stack the address to continue at
 * (system_call() in syscalls.h). Clobbered: RCX and R11, which the kernel changes.
 */
    .globl  syscall_instruction
    .hidden syscall_instruction
    .type   syscall_instruction, @function
syscall_instruction:
    .cfi_startproc              /* the address to continue at lies on the stack, as after a call */
    syscall
    .globl  system_call_return
    .hidden system_call_return
system_call_return:
    pop     %rcx
    .cfi_adjust_cfa_offset -8
    .cfi_register DWARF_RIP, rcx
    jmp     *%rcx
    .cfi_endproc
    .size   syscall_instruction, . - syscall_instruction

/* How handle_hypercall() returns; the compiler gives it this name. Clobbered: RCX, which a C call may
 * change. */
    .globl  __x86_return_thunk
    .hidden __x86_return_thunk
    .type   __x86_return_thunk, @function
__x86_return_thunk:
    .cfi_startproc
    pop     %rcx
    .cfi_adjust_cfa_offset -8
    .cfi_register DWARF_RIP, rcx
    jmp     *%rcx
    .cfi_endproc
    .size   __x86_return_thunk, . - __x86_return_thunk

/*
 * Where a signal's handler returns to. In: RSP = the signal's struct ucontext. Out: all registers as in that
 * structure.
 *
 * rt_sigreturn(2) would do the same, but a guest that jumps to it could choose its signal mask. Handlers do
 * not change the signal mask, so nothing else must be restored. If the address to return to is one that no
 * code can have, the IRETQ faults, and on_fault() in trap.c treats that as the guest's fault.
 *
 * An unwinder that comes from a handler looks for the address before the one that the handler returns to, hence
 * the first instruction.
 */
    .cfi_startproc
    .cfi_signal_frame
    .cfi_def_cfa rsp, 0
    .cfi_offset r8, UC_R8
    .cfi_offset r9, UC_R9
    .cfi_offset r10, UC_R10
    .cfi_offset r11, UC_R11
    .cfi_offset r12, UC_R12
    .cfi_offset r13, UC_R13
    .cfi_offset r14, UC_R14
    .cfi_offset r15, UC_R15
    .cfi_offset rdi, UC_RDI
    .cfi_offset rsi, UC_RSI
    .cfi_offset rbp, UC_RBP
    .cfi_offset rbx, UC_RBX
    .cfi_offset rdx, UC_RDX
    .cfi_offset rax, UC_RAX
    .cfi_offset rcx, UC_RCX
    .cfi_offset rsp, UC_RSP
    .cfi_offset DWARF_RIP, UC_RIP
    .cfi_offset DWARF_FLAGS, UC_FLAGS
    nop
    .globl  signal_return
    .hidden signal_return
    .type   signal_return, @function
signal_return:
    mov     %rsp, %rbx
    .cfi_def_cfa_register rbx
    mov     UC_FPSTATE(%rbx), %rcx
    cmpl    $FP_XSTATE_MAGIC1, FP_MAGIC1(%rcx)
    jne     1f
    mov     FP_XFEATURES(%rcx), %eax
    mov     FP_XFEATURES+4(%rcx), %edx
    xrstor64 (%rcx)
    jmp     2f
1:
    fxrstor64 (%rcx)
2:
    movzwl  UC_SS(%rbx), %eax
    push    %rax
    push    UC_RSP(%rbx)
    push    UC_FLAGS(%rbx)
    movzwl  UC_CS(%rbx), %eax
    push    %rax
    push    UC_RIP(%rbx)
    mov     UC_R8(%rbx), %r8
    mov     UC_R9(%rbx), %r9
    mov     UC_R10(%rbx), %r10
    mov     UC_R11(%rbx), %r11
    mov     UC_R12(%rbx), %r12
    mov     UC_R13(%rbx), %r13
    mov     UC_R14(%rbx), %r14
    mov     UC_R15(%rbx), %r15
    mov     UC_RDI(%rbx), %rdi
    mov     UC_RSI(%rbx), %rsi
    mov     UC_RBP(%rbx), %rbp
    mov     UC_RDX(%rbx), %rdx
    mov     UC_RAX(%rbx), %rax
    mov     UC_RCX(%rbx), %rcx
    mov     UC_RBX(%rbx), %rbx
    .globl  signal_return_leaves
    .hidden signal_return_leaves
signal_return_leaves:
    .cfi_def_cfa rsp, 40        /* RIP, CS, RFLAGS, RSP, SS */
    .irp    register, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
    .cfi_same_value \register
    .endr
    .cfi_offset DWARF_RIP, -40
    .cfi_offset DWARF_FLAGS, -24
    .cfi_offset rsp, -16
    iretq
    .cfi_endproc
    .size   signal_return, . - signal_return

    debug_address handler_stack, handler_stack
    debug_address handler_stack_top, handler_stack_top
    debug_address guest_rsp, guest_rsp
    debug_address guest_rip, guest_rip
    debug_address enter_guest, enter_guest
    debug_address enter_guest_end, enter_guest_end
    debug_address entry_patched, entry_patched
    debug_address entry_patched_end, entry_patched_end
    debug_address entry_patched_back, entry_patched_back
    debug_address entry_gate, entry_gate
    debug_address entry_gate_back, entry_gate_back
    debug_address guest_gpa, guest_gpa
    debug_address entry_gate_end, entry_gate_end
    debug_address syscall_instruction, syscall_instruction
    debug_address system_call_return, system_call_return
    debug_address return_thunk, __x86_return_thunk
    debug_address signal_return, signal_return
    debug_address signal_return_leaves, signal_return_leaves

    .section .note.GNU-stack, "", @progbits
