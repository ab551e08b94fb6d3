/* The life of a VM in the process that holds it: it is made, entered by a thread, kicked, left, released. */
#define _GNU_SOURCE
#include "runner.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "debug_note.h"
#include "device_ops.h"
#include "trace.h"

static void stop_devices(struct vm *vm)
{
    for (uint32_t type = 0; type < DEVICE_TYPES; type++)
        if (device_kinds[type] && device_kinds[type]->stop)
            device_kinds[type]->stop(vm);
}

/* The lock ensures that a late kick does not reach a thread that has left. */
static void kick(struct vm *vm)
{
    struct runner *runner = runner_of(vm);
    pthread_mutex_lock(&runner->lock);
    if (runner->thread && runner->exit_at_once) /* the thread may not be in the guest yet */
        __atomic_store_n(runner->exit_at_once, 1, __ATOMIC_SEQ_CST);
    if (runner->thread)
        (void)syscall(SYS_tgkill, runner->process, runner->thread, VM_KICK_SIGNAL);
    pthread_mutex_unlock(&runner->lock);
}

int vm_init(struct vm *vm)
{
    vm->shared = &vm->own_shared;
    vm->event = &vm->own_shared.event;
    vm->console.fd = CONSOLE_DISCARD;
    vm->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (vm->stop_fd < 0)
        return -errno;
    pthread_mutex_init(&runner_of(vm)->lock, NULL);
    runner_of(vm)->process = getpid();
    vm->kick = kick;
    return 0;
}

void vm_release(struct vm *vm)
{
    stop_devices(vm);
    for (uint32_t type = 0; type < DEVICE_TYPES; type++)
        if (device_kinds[type] && device_kinds[type]->release)
            device_kinds[type]->release(vm);
    guest_memory_unmap(&vm->memory);
    if (vm->console.own)
        close(vm->console.fd);
    close(vm->stop_fd);
    pthread_mutex_destroy(&runner_of(vm)->lock);
}

DEBUG_SYMBOL struct vm *vm_list;

void vm_list_add(struct vm *vm)
{
    struct runner *runner = runner_of(vm);
    runner->next = vm_list;
    runner->link = &vm_list;
    if (runner->next)
        runner_of(runner->next)->link = &runner->next;
    __atomic_store_n(&vm_list, vm, __ATOMIC_RELEASE);
}

void vm_list_remove(struct vm *vm)
{
    struct runner *runner = runner_of(vm);
    if (runner->next)
        runner_of(runner->next)->link = runner->link;
    __atomic_store_n(runner->link, runner->next, __ATOMIC_RELEASE);
    runner->link = NULL;
}

DEBUG_ADDRESS("vms", vm_list);
DEBUG_NOTE(debug_facts_of_runner)
{
#define OF_RUNNER(name, member)                                                                              \
    DEBUG_NUMBER(name, offsetof(struct vm, runner) + offsetof(struct runner, member))
    OF_RUNNER("vm_next", next);
    OF_RUNNER("vm_link", link);
    OF_RUNNER("vm_process", process);
    OF_RUNNER("vm_thread", thread);
    OF_RUNNER("vm_machine", machine);
    OF_RUNNER("vm_image", image);
}

int vm_reset(struct vm *vm)
{
    stop_devices(vm); /* they still run if an exception ended the run */
    const bool records = vm->shared->trace_limit == UINT64_MAX;
    *vm->shared = (struct vm_shared){0};
    if (records)
        trace_keep_on(vm->shared);
    vm->resume = (struct vm_resume){0};
    runner_of(vm)->signals_elsewhere = runner_of(vm)->signals_let_in_next = false;
    atomic_store(&vm->has_fault, false);
    atomic_store(&vm->stop_requested, false);
    uint64_t asked;
    (void)!read(vm->stop_fd, &asked, sizeof asked); /* EAGAIN: no stop was requested */
    int error = guest_memory_reset(&vm->memory);
    for (uint32_t type = 0; !error && type < DEVICE_TYPES; type++)
        if (device_kinds[type] && device_kinds[type]->reset)
            device_kinds[type]->reset(vm);
    return error;
}

static _Thread_local struct {
    bool held;
    sigset_t mask; /* the mask before the hold */
} signals;

static void hold(sigset_t *before)
{
    /* Synchronous signals stay unblocked: a fault of ours must not be lost. */
    static const int synchronous[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT};
    sigset_t block;
    sigfillset(&block);
    for (size_t i = 0; i < sizeof synchronous / sizeof *synchronous; i++)
        sigdelset(&block, synchronous[i]);
    pthread_sigmask(SIG_BLOCK, &block, before);
}

void vm_hold_signals(void)
{
    if (!signals.held)
        hold(&signals.mask);
    signals.held = true;
}

void vm_release_signals(void)
{
    if (signals.held)
        pthread_sigmask(SIG_SETMASK, &signals.mask, NULL);
    signals.held = false;
}

void vm_enter(struct vm *vm, sigset_t *saved)
{
    struct runner *runner = runner_of(vm);
    sigemptyset(saved); /* used if an inherited filter refuses the next call */
    if (signals.held)
        *saved = signals.mask;
    else if (runner->signals_at_will)
        pthread_sigmask(SIG_BLOCK, NULL, saved);
    else
        hold(saved);
    runner->run_mask = vm->poll_mask = *saved;
    sigdelset(&runner->run_mask, VM_KICK_SIGNAL);
    if (!runner->signals_at_will)
        sigaddset(&vm->poll_mask, VM_KICK_SIGNAL);
    pthread_mutex_lock(&runner->lock);
    runner->thread = (pid_t)syscall(SYS_gettid);
    pthread_mutex_unlock(&runner->lock);
}

void vm_leave(struct vm *vm, const sigset_t *saved)
{
    struct runner *runner = runner_of(vm);
    pthread_mutex_lock(&runner->lock);
    runner->thread = 0;
    pthread_mutex_unlock(&runner->lock);
    /* No more kicks can be sent. Take the pending ones, so that the restored mask does not deliver them to a
     * handler of the process. */
    sigset_t kick;
    sigemptyset(&kick);
    sigaddset(&kick, VM_KICK_SIGNAL);
    const struct timespec at_once = {0, 0};
    while (sigtimedwait(&kick, NULL, &at_once) > 0)
        ;
    if (!signals.held) /* if they are held, vm_release_signals() restores the mask */
        pthread_sigmask(SIG_SETMASK, saved, NULL);
}
