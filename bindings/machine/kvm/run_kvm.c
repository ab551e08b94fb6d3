#define _GNU_SOURCE
#include "run_kvm.h"

#include <errno.h>
#include <linux/kvm.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "copy_fault.h"
#include "device_ops.h"
#include "run_signals.h"
#include "runner.h"
#include "trace.h"

/* KVM's mask costs 200 instructions per exit; letting signals in costs about 30,000, once. */
#define EXITS_WITH_MASK 128

#define EXITS_PER_CHECK 16

int kvm_set_memory(const struct vm *vm, int machine_fd)
{
    const struct kvm_userspace_memory_region region = {
        .memory_size = vm->memory.mapped_bytes,
        .userspace_addr = (uintptr_t)vm->memory.hva,
    };
    return ioctl(machine_fd, KVM_SET_USER_MEMORY_REGION, &region) < 0 ? -errno : 0;
}

void kvm_clear_memory(int machine_fd)
{
    const struct kvm_userspace_memory_region none = {0};
    (void)ioctl(machine_fd, KVM_SET_USER_MEMORY_REGION, &none);
}

static enum verdict exit_with(struct vm *vm, enum vm_event_kind kind, uint64_t detail)
{
    vm->shared->event.kind = kind;
    vm->shared->event.detail = detail;
    return EXIT;
}

/*
 * KVM reports each access of OUTS, which writes the memory at RSI, in the same way as an `out` (emulate.c:
 * em_out()). Only the registers differ: an `out` writes EAX. Reading the registers costs 80 instructions
 * of the 3,200 of a short hypercall. So they are requested at each of the first exits, where a guest that was
 * not made for this ABI shows itself, and then at each sixteenth exit. An OUTS in between is served: it gives
 * the guest nothing that an `out` of the same word would not. While hypercalls are recorded, the registers
 * are requested at each exit.
 */
static inline void ask_for_registers(struct kvm_run *run, uint64_t exits, uint64_t until)
{
    run->kvm_valid_regs =
        exits < until || exits % EXITS_PER_CHECK == 0 ? KVM_SYNC_X86_REGS : 0; /* KVM API, 5 */
}

static inline bool is_of_outs(const struct kvm_run *run, uint32_t word)
{
    return run->kvm_valid_regs && (uint32_t)run->s.regs.regs.rax != word;
}

/* One `out` of 32 bits. Everything that makes it one is in one word of kvm_run, together with the port. */
static bool is_plain_out(const struct kvm_run *run)
{
    static const union {
        __typeof__(run->io) io;
        uint64_t word;
    } plain = {.io = {.direction = KVM_EXIT_IO_OUT, .size = sizeof(uint32_t), .count = 1}},
      port = {.io = {.port = UINT16_MAX}};
    _Static_assert(offsetof(struct kvm_run, io.data_offset) - offsetof(struct kvm_run, io) == 8, "one word");
    uint64_t word;
    memcpy(&word, &run->io, sizeof word);
    return (word & ~port.word) == plain.word;
}

/* `caller`: NULL, or the hypercall is recorded. It is inlined twice. */
static inline __attribute__((always_inline)) enum verdict handle_io(struct vm *vm, const struct kvm_run *run,
                                                                    const struct trace_caller *caller)
{
    if (!is_plain_out(run))
        return exit_bad_port(vm, run->io.port);
    uint32_t gpa;
    memcpy(&gpa, (const uint8_t *)run + run->io.data_offset, sizeof gpa);
    if (__builtin_expect(is_of_outs(run, gpa), 0))
        return exit_bad_port(vm, run->io.port);
    if (caller && run->io.port != HVT_PORT_NET_KICK)
        return hypercall_out_traced(vm, run->io.port, gpa, caller);
    const uint32_t number = run->io.port - HVT_PORT_BASE; /* a lower port wraps: past all numbers */
    if (number < HVT_HYPERCALL_MAX)
        return hypercall(vm, number, gpa);
    if (run->io.port == HVT_PORT_NET_KICK && vm->doorbell)
        return vm->doorbell(vm);
    return hypercall_out(vm, run->io.port, gpa);
}

static __attribute__((cold)) enum verdict handle_other_exit(struct vm *vm, const struct kvm_run *run)
{
    switch (run->exit_reason) {
    case KVM_EXIT_FAIL_ENTRY:
        return exit_with(vm, EVENT_ENTRY_FAILURE, run->fail_entry.hardware_entry_failure_reason);
    case KVM_EXIT_INTERNAL_ERROR:
        return exit_with(vm, EVENT_INTERNAL_ERROR, run->internal.suberror);
    default:
        return exit_with(vm, EVENT_UNHANDLED_EXIT, run->exit_reason);
    }
}

enum verdict kvm_exit_handle(struct vm *vm, const struct kvm_run *run)
{
    return run->exit_reason == KVM_EXIT_IO ? handle_io(vm, run, NULL) : handle_other_exit(vm, run);
}

static bool has_trace_ring(struct vm *vm)
{
    if (vm->trace)
        return true;
    void *ring = mmap(NULL, TRACE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ring != MAP_FAILED)
        __atomic_store_n(&vm->trace, ring, __ATOMIC_RELEASE); /* a reader in another process finds it */
    return vm->trace;
}

/* The first exit, and every exit while hypercalls are recorded. */
static __attribute__((cold, noinline)) enum verdict handle_noted_exit(struct vm *vm,
                                                                      const struct kvm_run *run)
{
    const bool has_registers = run->kvm_valid_regs;
    const struct trace_caller caller = {
        .rip = has_registers ? run->s.regs.regs.rip : 0, /* of the `out`, which KVM completes later */
        .rsp = has_registers ? run->s.regs.regs.rsp : 0,
    };
    note_first_exit(vm->shared);
    vm->shared->counters.exits++;
    if (vm->shared->trace_on && run->exit_reason == KVM_EXIT_IO && has_trace_ring(vm))
        return handle_io(vm, run, &caller);
    return kvm_exit_handle(vm, run);
}

static __attribute__((cold)) enum verdict handle_failed_run(struct vm *vm, int error)
{
    switch (error) {
    case EINTR:
        return exit_interrupted(vm);
    case EFAULT: /* the second-level tables found our mapping not writable: gup fails, KVM gives up */
        return exit_with(vm, EVENT_TRANSLATION_FAULT, 0);
    default:
        vm->shared->event.os_error = error;
        return exit_with(vm, EVENT_HOST_ERROR, 0);
    }
}

/* Sets the mask that KVM_RUN puts in place of the thread's, atomically (KVM API, 4.20). NULL: KVM_RUN keeps
 * the thread's mask. */
static int set_run_mask(int vcpu_fd, const sigset_t *run_mask)
{
    struct {
        struct kvm_signal_mask head;
        uint8_t bits[8]; /* the kernel's sigset_t; glibc's is larger and begins with it */
    } mask;
    if (!run_mask)
        return ioctl(vcpu_fd, KVM_SET_SIGNAL_MASK, NULL);
    mask.head.len = sizeof mask.bits;
    memcpy(mask.head.sigset, run_mask, sizeof mask.bits);
    return ioctl(vcpu_fd, KVM_SET_SIGNAL_MASK, &mask);
}

static uint64_t guest_rip(int vcpu_fd)
{
    struct kvm_regs regs;
    return ioctl(vcpu_fd, KVM_GET_REGS, &regs) == 0 ? regs.rip : 0;
}

/* ioctl(vcpu_fd, KVM_RUN): a count, or -errno. libc's ioctl() is variadic, and is as long as all of our code
 * between two exits. */
static inline long enter_guest(int vcpu_fd)
{
    long answer = SYS_ioctl;
    __asm__ volatile("syscall" : "+a"(answer) : "D"(vcpu_fd), "S"(KVM_RUN), "d"(0L) : "rcx", "r11", "memory");
    return answer;
}

/* ---- a debugger (tender/debug/kvm.py) */

/*
 * The debugger traces this thread, and it may be killed at any moment. Then the thread goes on immediately.
 * So nothing that stops the thread may do harm without a tracer: no breakpoint lies in our code. We tell the
 * tracer by a signal to this thread: a traced thread stops there, and any other ignores it.
 */
static __attribute__((cold, noinline)) void tell_debugger(struct vm *vm, enum vm_told what)
{
    sigset_t kick, before;
    sigemptyset(&kick);
    sigaddset(&kick, VM_KICK_SIGNAL);
    /* In this order, because it may attach at any time. It sets `held` and then looks at `told`. */
    __atomic_store_n(&vm->shared->told, what, __ATOMIC_SEQ_CST);
    if (!__atomic_load_n(&vm->shared->held, __ATOMIC_SEQ_CST))
        return;
    pthread_sigmask(SIG_UNBLOCK, &kick, &before);
    (void)syscall(SYS_tgkill, runner_of(vm)->process, runner_of(vm)->thread, VM_KICK_SIGNAL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* A breakpoint is a HLT in the guest's text. KVM has left RIP after it. */
static void go_back_to_breakpoint(int vcpu_fd, struct kvm_run *run)
{
    if (ioctl(vcpu_fd, KVM_GET_REGS, &run->s.regs.regs) < 0)
        return;
    run->s.regs.regs.rip--;
    run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
}

/*
 * True: the guest goes on, because the debugger has answered so, or because it was killed. If it was killed,
 * its guard removes the breakpoints soon, and until then the guest tries again, for about 10 s.
 *
 * `told` is TOLD_EXIT only as long as this function waits for the answer. Whoever sees it knows that the
 * thread looks at the exit in `run` no more. And that exit is erased before it: else a debugger that comes
 * later would wait to be told of it.
 */
static __attribute__((cold, noinline)) bool is_debuggers_exit(struct vm *vm, int vcpu_fd, struct kvm_run *run)
{
    static const struct timespec a_while = {.tv_nsec = 1000000};
    enum { TRIES_MAX = 10000 };
    struct vm_shared *shared = vm->shared;
    const struct vm_event event = shared->event;
    if (event.kind != EVENT_UNHANDLED_EXIT)
        return false;
    if (event.detail == KVM_EXIT_HLT)
        go_back_to_breakpoint(vcpu_fd, run);
    else if (event.detail != KVM_EXIT_DEBUG)
        return false;
    shared->event = (struct vm_event){0}; /* the run has not ended */
    tell_debugger(vm, TOLD_EXIT);
    if (__atomic_load_n(&shared->told, __ATOMIC_SEQ_CST) == TOLD_EXIT)
        (void)ppoll(NULL, 0, &a_while, NULL);
    run->exit_reason = KVM_EXIT_UNKNOWN;
    const uint32_t answer = __atomic_exchange_n(&shared->told, TOLD_NOTHING, __ATOMIC_SEQ_CST);
    if (answer == TOLD_REFUSED || (answer == TOLD_EXIT && ++shared->told_tries > TRIES_MAX)) {
        shared->event = event;
        return false;
    }
    if (answer != TOLD_EXIT)
        shared->told_tries = 0;
    shared->counters.exits--; /* a guest's counters do not tell of its debugger */
    return true;
}

/* ---- the loop */

/* Runs until there is an event, or for this many exits. A stop that is requested in the meantime ends
 * KVM_RUN, or the next KVM_RUN before it begins: vm_stop(). */
static enum verdict run_guest(struct vm *vm, int vcpu_fd, struct kvm_run *run, uint64_t exits)
{
    struct vm_shared *shared = vm->shared;
    if (!shared->timeline.first_run)
        shared->timeline.first_run = monotonic_ns();
    for (; exits; exits--) {
        ask_for_registers(run, shared->counters.exits, shared->registers_until);
        const long answer = enter_guest(vcpu_fd);
        enum verdict verdict;
        if (__builtin_expect(answer < 0, 0)) {
            verdict = handle_failed_run(vm, (int)-answer);
        } else if (__builtin_expect(exit_is_noted(shared), 0)) {
            verdict = handle_noted_exit(vm, run);
        } else {
            shared->counters.exits++;
            verdict = kvm_exit_handle(vm, run);
        }
        if (verdict == EXIT && !(__builtin_expect(shared->held, 0) && is_debuggers_exit(vm, vcpu_fd, run)))
            return EXIT;
    }
    return CONTINUE;
}

/* Runs with signals blocked. For this many exits the mask costs less in total than letting signals in. After
 * them the caller checks what signals have left for it, and calls again. */
static enum verdict run_with_mask(struct vm *vm, int vcpu_fd, struct kvm_run *run)
{
    if (set_run_mask(vcpu_fd, &runner_of(vm)->run_mask) < 0)
        return handle_failed_run(vm, errno);
    if (run_guest(vm, vcpu_fd, run, EXITS_WITH_MASK) == EXIT)
        return EXIT;
    runner_of(vm)->signals_let_in_next = true;
    return exit_interrupted(vm);
}

static enum verdict run(struct vm *vm, int vcpu_fd, struct kvm_run *run)
{
    if (atomic_load(&vm->stop_requested))
        return exit_stopped(vm);
    if (runner_of(vm)->signals_at_will)
        return run_guest(vm, vcpu_fd, run, UINT64_MAX);
    if (!runner_of(vm)->signals_elsewhere && !runner_of(vm)->signals_let_in_next)
        return run_with_mask(vm, vcpu_fd, run);
    runner_of(vm)->signals_let_in_next = false;
    const bool let_in = run_signals_let_in(vm);
    enum verdict verdict = EXIT;
    if (set_run_mask(vcpu_fd, let_in ? NULL : &runner_of(vm)->run_mask) < 0)
        (void)handle_failed_run(vm, errno);
    else
        verdict = run_guest(vm, vcpu_fd, run, UINT64_MAX);
    if (let_in)
        run_signals_hold(vm);
    return verdict;
}

void kvm_run_loop(struct vm *vm, int vcpu_fd, struct kvm_run *run_page)
{
    struct vm_shared *shared = vm->shared;
    sigset_t saved;
    run_page->immediate_exit = 0; /* a stop that was requested earlier is noticed below */
    runner_of(vm)->exit_at_once = &run_page->immediate_exit;
    vm_enter(vm, &saved);
    copy_fault_prepare(vm);
    shared->event = (struct vm_event){0};
    if (!shared->registers_until)
        shared->registers_until = TRACE_REGISTERS_OFF;
    if (hypercall_resume(vm) == CONTINUE)
        (void)run(vm, vcpu_fd, run_page);
    if (event_ends_run(shared->event.kind)) {
        devices_end(vm);
        shared->timeline.guest_exit = monotonic_ns();
        shared->event.rip = guest_rip(vcpu_fd);
        tell_debugger(vm, TOLD_END);
    }
    vm_leave(vm, &saved);
}
