/* The life of a VM in the process that holds it: made, entered by a thread, kicked, left, released. */
#define _GNU_SOURCE
#include "vm.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "ring.h"

int vm_init(struct vm *vm)
{
    vm->shared = &vm->own_shared;
    vm->event = &vm->own_shared.event;
    vm->console_fd = CONSOLE_DISCARD;
    vm->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (vm->stop_fd < 0)
        return -errno;
    pthread_mutex_init(&vm->runner_lock, NULL);
    vm->process = getpid();
    return 0;
}

void vm_release(struct vm *vm)
{
    ring_worker_stop(vm);
    for (uint32_t i = 0; i < vm->device_end; i++)
        disk_map_close(&vm->devices[i].map);
    guest_memory_unmap(&vm->memory);
    if (vm->console_own)
        close(vm->console_fd);
    close(vm->stop_fd);
    pthread_mutex_destroy(&vm->runner_lock);
}

uint64_t vm_largest_file(const struct vm *vm)
{
    struct stat about;
    uint64_t largest = 0;
    if (vm->console_fd >= 0 && fstat(vm->console_fd, &about) == 0 && S_ISREG(about.st_mode))
        return UINT64_MAX;
    for (uint32_t i = 0; i < vm->device_end; i++)
        if (vm->devices[i].type == MFT_BLOCK_BASIC && vm->devices[i].capacity > largest)
            largest = vm->devices[i].capacity;
    return largest;
}

#define LEFT_FRAMES_MAX 4096 /* more than an interface's queue has; a peer that floods it is not waited for */

/* What came by an interface for the last guest is not the next one's: one that is opened anew has none. A
 * socket stays its owner's, with what is in it. */
static void drop_frames(struct vm_device *device)
{
    uint8_t beginning[64]; /* the rest of a frame goes with it */
    device->gone = device->detached = device->drained = false;
    if (device->type != MFT_NET_BASIC || device->is_socket)
        return;
    for (uint32_t i = 0; i < LEFT_FRAMES_MAX; i++)
        if (read(device->fd, beginning, sizeof beginning) <= 0 && errno != EINVAL)
            break; /* EINVAL: a frame that the interface could not hand over, and it is gone */
}

int vm_reset(struct vm *vm)
{
    ring_worker_stop(vm); /* a run that its caller left by an exception has not stopped it */
    *vm->shared = (struct vm_shared){0};
    vm->resume = (struct vm_resume){0};
    vm->signals_elsewhere = vm->signals_let_in_next = false;
    atomic_store(&vm->stop_requested, false);
    atomic_store(&vm->net_unsettled, false);
    vm->net_told = false;
    vm->net_look_ns = 0;
    uint64_t asked;
    (void)!read(vm->stop_fd, &asked, sizeof asked); /* EAGAIN: nobody had asked */
    for (uint32_t i = 0; i < vm->device_end; i++)
        drop_frames(&vm->devices[i]);
    int error = guest_memory_reset(&vm->memory);
    if (!error && vm->ring.shared)
        ring_offer(vm, vm->ring.shared, vm->ring.mode);
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
