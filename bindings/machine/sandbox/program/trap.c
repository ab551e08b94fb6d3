/*
 * Signals: they replace what a virtual machine's processor does by itself.
 *
 *   #GP, #UD  on a privileged instruction: emulated (emulate.c), or a hypercall; else the guest's exception
 *   #PF       the guest's exception; or, if the guest's page tables allow the access, the end of the run
 *   others    the guest's exception (fault.c), through its own IDT
 *   SIGSYS    the guest itself made a system call: the end of the run, with the call's number
 *   the kick  the end of the run, immediately; a report that has begun is completed first
 *   SIGBUS    in a copy from or to a mapped disk: the copy ends early (devices/block/disk_map.h)
 *
 * The signal handlers run on a stack of their own. No signal is blocked while the guest runs: unblocking it
 * would need a system call that a guest could use to block the kick. A fault in a handler arrives here too,
 * and ends the run. A fault while that one is handled kills the process, and the process that holds the VM
 * reports it.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <linux/audit.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>

#include "debug_note.h"
#include "emulate.h"
#include "fault.h"
#include "guarded_copy.h"
#include "program.h"
#include "syscalls.h"

#define TRAP_STACK_BYTES (64u << 10) /* a frame with AVX-512 is 3 KiB, one with AMX tiles 11 KiB */
#define SA_RESTORER_FLAG 0x04000000u /* asm/signal.h; libc hides it */
#define RFLAGS_AC        0x40000u
#define SYSCALL_BYTES    2 /* the same for syscall, int 0x80 and sysenter */
#define VECTOR_DB        1
#define ERROR_FETCH      16
#define EXIT_HLT         5 /* KVM's numbers, so that a reason is the same on both backends */
#define EXIT_SHUTDOWN    8
#define CALL_URETPROBE   335 /* asm/unistd_64.h of Linux 6.11 */

#define ARCH_REQ_XCOMP_PERM_CODE 0x1023 /* asm/prctl.h of Linux 5.16 */
#define XFEATURE_TILE_DATA       18     /* the bit of XCR0 */
#ifdef ARCH_REQ_XCOMP_PERM
_Static_assert(ARCH_REQ_XCOMP_PERM_CODE == ARCH_REQ_XCOMP_PERM, "as the kernel has it");
#endif

DEBUG_SYMBOL uint8_t trap_stack[TRAP_STACK_BYTES] __attribute__((aligned(16)));
DEBUG_ADDRESS("trap_stack", trap_stack);
DEBUG_SYMBOL struct system_state state __asm__("guest_system_state");
DEBUG_ADDRESS("system_state", guest_system_state);
DEBUG_NOTE(debug_facts_of_traps)
{
    DEBUG_NUMBER("trap_stack_bytes", TRAP_STACK_BYTES);
    DEBUG_OFFSET("system_gdtr", struct system_state, gdtr); /* with idtr behind it */
    DEBUG_OFFSET("system_tr", struct system_state, tr);     /* with ldtr behind it */
    DEBUG_OFFSET("system_selector", struct system_state, selector);
    DEBUG_OFFSET("system_cr0", struct system_state, cr0); /* with cr2, cr3, cr4, cr8 */
    DEBUG_OFFSET("system_dr", struct system_state, dr);   /* with dr6, dr7 */
    DEBUG_OFFSET("system_efer", struct system_state, efer);
    DEBUG_OFFSET("system_kernel_gs_base", struct system_state, kernel_gs_base);
    DEBUG_OFFSET("system_interrupts", struct system_state, interrupts);
}

/* In the order of the register numbers of the instruction set. */
static const int registers[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

/* ---- the FS and GS base, which are neither in a signal's frame nor used by a handler */

static uint64_t base_get(int code)
{
    uint64_t base = 0;
    if (!auxiliary.fsgsbase)
        (void)system_call((uint64_t)code, (uint64_t)&base, 0, 0, 0, 0, SYS_arch_prctl);
    else if (code == ARCH_GET_FS)
        __asm__ volatile("rdfsbase %0" : "=r"(base));
    else
        __asm__ volatile("rdgsbase %0" : "=r"(base));
    return base;
}

static void base_set(int code, uint64_t base)
{
    if (!auxiliary.fsgsbase)
        (void)system_call((uint64_t)code, base, 0, 0, 0, 0, SYS_arch_prctl);
    else if (code == ARCH_SET_FS)
        __asm__ volatile("wrfsbase %0" : : "r"(base));
    else
        __asm__ volatile("wrgsbase %0" : : "r"(base));
}

/* ---- the frame */

static void take(struct cpu *cpu, const ucontext_t *context)
{
    for (int i = 0; i < 16; i++)
        cpu->gpr[i] = (uint64_t)context->uc_mcontext.gregs[registers[i]];
    cpu->rip = (uint64_t)context->uc_mcontext.gregs[REG_RIP];
    cpu->rflags = (uint64_t)context->uc_mcontext.gregs[REG_EFL];
    state.fs_base = base_get(ARCH_GET_FS);
    state.gs_base = base_get(ARCH_GET_GS);
    state.bases_changed = false;
}

static void give(ucontext_t *context, const struct cpu *cpu)
{
    for (int i = 0; i < 16; i++)
        context->uc_mcontext.gregs[registers[i]] = (long long)cpu->gpr[i];
    context->uc_mcontext.gregs[REG_RIP] = (long long)cpu->rip;
    context->uc_mcontext.gregs[REG_EFL] = (long long)cpu->rflags;
    if (state.bases_changed) {
        base_set(ARCH_SET_FS, state.fs_base);
        base_set(ARCH_SET_GS, state.gs_base);
    }
}

/* ---- ends of the run */

static _Noreturn void end(enum vm_event_kind kind, uint32_t number, uint64_t detail, const struct cpu *cpu)
{
    struct vm_event *event = &the_vm.shared->event;
    *event = (struct vm_event){
        .kind = kind, .number = number, .detail = detail, .rip = cpu->rip, .registers_valid = 1};
    memcpy(event->registers.gpr, cpu->gpr, sizeof cpu->gpr);
    event->registers.rip = cpu->rip;
    event->registers.rflags = cpu->rflags;
    event->registers.cr2 = state.cr2;
    event->registers.fs_base = state.fs_base;
    for (uint32_t len = INSTRUCTION_MAX; len && !event->instruction_bytes; len--) {
        const void *code = guest_bytes_at(&the_vm.memory, cpu->rip, len);
        if (code) {
            memcpy(event->instruction, code, len);
            event->instruction_bytes = len;
        }
    }
    end_run();
}

/* The guest executed it itself: if the handlers make such a call, the filter kills. */
static _Noreturn void end_syscall(const siginfo_t *info, struct cpu *cpu)
{
    cpu->rip -= SYSCALL_BYTES;
    end(EVENT_FORBIDDEN_SYSCALL, (uint32_t)info->si_syscall, info->si_arch, cpu);
}

/*
 * The system call uretprobe passes every filter since Linux 6.14. If it is not made from the kernel's own
 * page for a probe, its only effect is a SIGILL that is marked as the kernel's, not as an instruction's.
 */
static bool is_uretprobe(int number, const siginfo_t *info)
{
    return number == SIGILL && info->si_code == SI_KERNEL;
}

static _Noreturn void end_uretprobe(struct cpu *cpu)
{
    cpu->rip -= SYSCALL_BYTES;
    end(EVENT_FORBIDDEN_SYSCALL, CALL_URETPROBE, AUDIT_ARCH_X86_64, cpu);
}

/* ---- exceptions */

static void deliver(struct cpu *cpu, const struct exception *exception)
{
    const struct cpu before = *cpu;
    the_vm.shared->counters.guest_faults++;
    if (!fault_deliver(&the_vm.memory, &state, cpu, exception))
        end(EVENT_UNHANDLED_EXIT, 0, EXIT_SHUTDOWN, &before);
}

/* Whether the guest's page tables allow this access, and only the host's rights forbid it. Under KVM the
 * second-level page tables would forbid it. */
static bool is_below_the_guest(gpa_t address, uint64_t error)
{
    if (address >= the_vm.memory.bytes || address < HVT_LOW_UNMAPPED_BYTES)
        return false;
    if (error & ERROR_FETCH)
        return true;
    if (address < HVT_GUEST_MIN_GPA)
        return false; /* read-only in the guest's own tables */
    return true;
}

/* Emulates what the guest's ring 0 does there. False: the instruction is not privileged. */
static bool was_privileged(struct cpu *cpu)
{
    struct emulated done;
    switch (emulate(&the_vm.memory, &state, cpu, &done)) {
    case EMULATED:
        the_vm.shared->counters.emulated++;
        return true;
    case EMULATED_OUT:
        the_vm.shared->counters.trapped_hypercalls++;
        handle_out(done.port, done.value, cpu->rip, cpu->gpr[GPR_RSP]);
        cpu->rip += done.length;
        return true;
    case BAD_PORT:
        (void)exit_bad_port(&the_vm, done.port);
        the_vm.shared->event.rip = cpu->rip;
        end_run();
    case HALTED:
        end(EVENT_UNHANDLED_EXIT, 0, EXIT_HLT, cpu);
    case GUEST_FAULT:
    case GUEST_INTERRUPT:
        deliver(cpu, &done.exception);
        return true;
    case NOT_PRIVILEGED:
        return false;
    case UNSUPPORTED:
        break;
    }
    end(EVENT_UNSUPPORTED_INSTRUCTION, 0, 0, cpu);
}

/*
 * A far return or IRET to a privilege level above ours is #GP. But some processors first read the frame of
 * a return to an outer ring. They then fault past the end of a stack, although the guest's own return would
 * stay within it. So privileged instructions are examined first.
 */
static void page_fault(struct cpu *cpu, uint64_t address, uint64_t error)
{
    if (!(error & ERROR_FETCH) && was_privileged(cpu))
        return;
    if (is_below_the_guest(address, error)) {
        state.cr2 = address;
        end(EVENT_TRANSLATION_FAULT, 0, error & ERROR_FETCH ? 1 : 0, cpu);
    }
    const struct exception exception = {
        .vector = VECTOR_PF,
        .error = fault_error_code(&the_vm.memory, address, error),
        .cr2 = address,
    };
    deliver(cpu, &exception);
}

/* ---- the signal handlers */

extern const uint8_t __ehdr_start[] __attribute__((visibility("hidden")));
extern const uint8_t _end[] __attribute__((visibility("hidden")));

static bool is_ours(uint64_t rip)
{
    return rip >= (uint64_t)__ehdr_start && rip < (uint64_t)_end;
}

/* The guest may have turned on alignment checks, which the processor also applies to us. It may have set the
 * nested-task flag, with which the processor refuses IRETQ. */
static inline void clean_flags(void)
{
    __asm__ volatile(
        "pushfq\n\t.cfi_adjust_cfa_offset 8\n\tandl %0, (%%rsp)\n\tpopfq\n\t.cfi_adjust_cfa_offset -8"
        :
        : "i"(~(RFLAGS_AC | RFLAGS_NT))
        : "cc", "memory");
}

/* The IRETQ of signal_return refused the frame on its stack. The fault belongs to the place that it returns
 * to. */
static void use_return_target(greg_t *gregs)
{
    const greg_t *to = (const greg_t *)(uintptr_t)gregs[REG_RSP]; /* RIP, CS, RFLAGS, RSP, SS */
    gregs[REG_RIP] = to[0];
    gregs[REG_EFL] = to[2];
    gregs[REG_RSP] = to[3];
}

/*
 * A trap while a debugger is attached comes here if the debugger was killed. Its guard finds this handler,
 * puts RIP in the signal's frame right, and says by `told` whether the trap was the debugger's
 * (tender/debug/sandbox_restore.py). We wait for that, for 10 s at most in all, and change nothing: only the
 * guard knows whether RIP was put back already. A debugger that lives passes a trap of the guest's own by
 * TOLD_REFUSED. A guest that sets these words itself gains nothing but a sleep.
 */
static __attribute__((cold, noinline)) bool is_debuggers(void)
{
    static const struct timespec a_while = {0, 1000000};
    enum { TRIES_MAX = 10000 };
    struct vm_shared *shared = the_vm.shared;
    while (shared->held && shared->told == TOLD_NOTHING && shared->told_tries < TRIES_MAX) {
        shared->told_tries++;
        (void)ppoll(NULL, 0, &a_while, NULL);
    }
    const bool is = shared->told == TOLD_TAKEN;
    shared->told = TOLD_NOTHING;
    return is;
}

static void on_fault(int number, siginfo_t *info, void *frame)
{
    ucontext_t *context = frame;
    clean_flags();
    greg_t *gregs = context->uc_mcontext.gregs;
    unsigned vector = (unsigned)gregs[REG_TRAPNO];
    if (info->si_code <= 0)
        return; /* another process sent it: it has nothing to do with the guest */
    if (number == SIGTRAP && __builtin_expect(the_vm.shared->held | the_vm.shared->told, 0) && is_debuggers())
        return;
    if (gregs[REG_RIP] == (greg_t)signal_return_leaves)
        use_return_target(gregs);
    bool ours = is_ours((uint64_t)gregs[REG_RIP]);
    if (number == SIGBUS && gregs[REG_RIP] == (greg_t)guarded_copy_may_fault) {
        gregs[REG_RIP] = (greg_t)guarded_copy_ends;
        return;
    }
    if (number != SIGSYS && vector == VECTOR_AC) {
        gregs[REG_EFL] &= ~(long long)RFLAGS_AC; /* CR0.AM is not set: the flag has no meaning */
        return;
    }
    if (ours && number != SIGSYS && vector == VECTOR_DB) {
        gregs[REG_EFL] &= ~(long long)RFLAGS_TF;
        return;
    }
    struct cpu cpu;
    take(&cpu, context);
    if (number == SIGSYS)
        end_syscall(info, &cpu);
    if (is_uretprobe(number, info) && !ours)
        end_uretprobe(&cpu);
    if (ours) /* the guest jumped into the handlers, or overwrote memory that they rely on */
        end(EVENT_HANDLER_FAULT, 0, (uint64_t)number, &cpu);
    count_exit();
    const struct exception native = {
        .vector = (uint8_t)vector,
        .software = vector == VECTOR_BP, /* rip is already after the instruction */
        .error = vector == VECTOR_GP ? (uint32_t)gregs[REG_ERR] : 0,
    };
    if (vector == VECTOR_PF)
        page_fault(&cpu, (uint64_t)gregs[REG_CR2], (uint64_t)gregs[REG_ERR]);
    else if ((vector != VECTOR_GP && vector != VECTOR_UD) || !was_privileged(&cpu))
        deliver(&cpu, &native);
    give(context, &cpu);
}

static void on_kick(int number, siginfo_t *info, void *frame)
{
    (void)number;
    (void)info;
    (void)frame;
    clean_flags();
    stop_soon();
}

/* The kernel's struct sigaction, which differs from libc's. */
struct kernel_sigaction {
    void (*handler)(int, siginfo_t *, void *);
    uint64_t flags;
    void (*restorer)(void);
    uint64_t mask;
};

#define BIT(number) ((uint64_t)1 << ((number) - 1))
#define STOPS       (BIT(SIGTERM) | BIT(SIGINT) | BIT(SIGALRM) | BIT(SIGQUIT))

/* A handler that never returns may block the other stops: what is blocked then stays blocked. */
static void install(int number, void (*handler)(int, siginfo_t *, void *), bool returns)
{
    const struct kernel_sigaction action = {
        .handler = handler,
        .flags = SA_SIGINFO | SA_ONSTACK | SA_RESTORER_FLAG | (returns ? SA_NODEFER : 0),
        .restorer = signal_return,
        .mask = returns ? 0 : STOPS,
    };
    int64_t answer =
        system_call((uint64_t)number, (uint64_t)&action, 0, sizeof action.mask, 0, 0, SYS_rt_sigaction);
    step_check(STEP_SIGNALS, answer);
}

/* What the host's kernel has turned on: XGETBV needs OSXSAVE, leaf 1 ECX bit 27. */
static uint64_t host_xcr0(void)
{
    uint32_t eax = 1, ebx, ecx = 0, edx, low, high;
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    if (!(ecx & 1u << 27))
        return 1;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* CPUID shows AMX, but a process may use its tiles only after it has requested them (Linux 5.16). If the
 * request is refused, the guest gets #NM's signal at its first tile instruction. It must follow
 * sigaltstack(), because the kernel checks that a frame with tiles fits there. */
static void ask_for_tiles(uint64_t xcr0)
{
    if (xcr0 & (uint64_t)1 << XFEATURE_TILE_DATA)
        (void)system_call(ARCH_REQ_XCOMP_PERM_CODE, XFEATURE_TILE_DATA, 0, 0, 0, 0, SYS_arch_prctl);
}

static void on_stop(int number, siginfo_t *info, void *frame)
{
    const ucontext_t *context = frame;
    (void)info;
    clean_flags();
    alone_stop(number, (uint64_t)context->uc_mcontext.gregs[REG_RIP] == (uint64_t)system_call_return,
               context->uc_mcontext.gregs[REG_RAX]);
}

void traps_init(uint32_t kick_signal, const struct sandbox_alone *alone)
{
    static const int faults[] = {SANDBOX_FAULTS};
    const stack_t stack = {.ss_sp = trap_stack, .ss_size = sizeof trap_stack};
    int64_t answer = system_call((uint64_t)&stack, 0, 0, 0, 0, 0, SYS_sigaltstack);
    step_check(STEP_SIGNALS, answer);
    const uint64_t xcr0 = host_xcr0();
    ask_for_tiles(xcr0);
    system_state_init(&state, xcr0);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        install(faults[i], on_fault, true);
    if (!alone->wanted) {
        install((int)kick_signal, on_kick, true);
        return;
    }
    install(SIGTERM, on_stop, false);
    if (!alone->ignores_interrupts)
        install(SIGINT, on_stop, false);
    if (alone->time_over[0])
        install(SIGALRM, on_stop, false);
    if (alone->observed)
        install(SIGQUIT, on_stop, false);
}
