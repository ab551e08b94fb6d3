/* The life of a VM in the process that holds it: made, entered by a thread, kicked, left, released. */
#define _GNU_SOURCE
#include "vm.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "device_ops.h"

static void stop_devices(struct vm *vm)
{
    for (uint32_t type = 0; type < DEVICE_TYPES; type++)
        if (device_kinds[type] && device_kinds[type]->stop)
            device_kinds[type]->stop(vm);
}

int vm_init(struct vm *vm)
{
    vm->shared = &vm->own_shared;
    vm->event = &vm->own_shared.event;
    vm->console.fd = CONSOLE_DISCARD;
    vm->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (vm->stop_fd < 0)
        return -errno;
    pthread_mutex_init(&vm->runner_lock, NULL);
    vm->process = getpid();
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
    pthread_mutex_destroy(&vm->runner_lock);
}

uint64_t vm_largest_file(const struct vm *vm)
{
    struct stat about;
    uint64_t largest = 0;
    if (vm->console.fd >= 0 && fstat(vm->console.fd, &about) == 0 && S_ISREG(about.st_mode))
        return UINT64_MAX;
    for (uint32_t i = 0; i < vm->device_end; i++) {
        const uint64_t bytes = device_places(&vm->devices[i]).bytes;
        largest = bytes > largest ? bytes : largest;
    }
    return largest;
}

int vm_reset(struct vm *vm)
{
    stop_devices(vm); /* a run that its caller left by an exception has not */
    *vm->shared = (struct vm_shared){0};
    vm->resume = (struct vm_resume){0};
    vm->signals_elsewhere = vm->signals_let_in_next = false;
    atomic_store(&vm->has_fault, false);
    atomic_store(&vm->stop_requested, false);
    uint64_t asked;
    (void)!read(vm->stop_fd, &asked, sizeof asked); /* EAGAIN: nobody had asked */
    int error = guest_memory_reset(&vm->memory);
    for (uint32_t type = 0; !error && type < DEVICE_TYPES; type++)
        if (device_kinds[type] && device_kinds[type]->reset)
            device_kinds[type]->reset(vm);
    return error;
}

static _Thread_local struct {
    bool held;
    sigset_t mask; /* what was let in before */
} signals;

static void hold(sigset_t *before)
{
    /* Synchronous ones stay: a fault of ours must not be lost. */
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
    sigemptyset(saved); /* what holds where a filter refuses the next call */
    if (signals.held)
        *saved = signals.mask;
    else if (vm->signals_at_will)
        pthread_sigmask(SIG_BLOCK, NULL, saved);
    else
        hold(saved);
    vm->run_mask = vm->poll_mask = *saved;
    sigdelset(&vm->run_mask, VM_KICK_SIGNAL);
    if (!vm->signals_at_will)
        sigaddset(&vm->poll_mask, VM_KICK_SIGNAL);
    pthread_mutex_lock(&vm->runner_lock);
    vm->runner = (pid_t)syscall(SYS_gettid);
    pthread_mutex_unlock(&vm->runner_lock);
}

void vm_leave(struct vm *vm, const sigset_t *saved)
{
    pthread_mutex_lock(&vm->runner_lock);
    vm->runner = 0;
    pthread_mutex_unlock(&vm->runner_lock);
    /* No kick can be sent any more; take those that were, before the mask could let them kill us. */
    sigset_t kick;
    sigemptyset(&kick);
    sigaddset(&kick, VM_KICK_SIGNAL);
    const struct timespec at_once = {0, 0};
    while (sigtimedwait(&kick, NULL, &at_once) > 0)
        ;
    if (!signals.held) /* else vm_release_signals() does */
        pthread_sigmask(SIG_SETMASK, saved, NULL);
}

void vm_stop(struct vm *vm)
{
    atomic_store(&vm->stop_requested, true);
    const uint64_t one = 1;
    (void)!write(vm->stop_fd, &one, sizeof one); /* EAGAIN: it is set already */
    pthread_mutex_lock(&vm->runner_lock);
    if (vm->runner && vm->leave_at_once)
        __atomic_store_n(vm->leave_at_once, 1, __ATOMIC_SEQ_CST); /* the runner may not be in the guest yet */
    if (vm->runner)
        (void)syscall(SYS_tgkill, vm->process, vm->runner, VM_KICK_SIGNAL);
    pthread_mutex_unlock(&vm->runner_lock);
}
