#define _GNU_SOURCE
#include "copy_fault.h"

#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "device_ops.h"
#include "guarded_copy.h"

static struct sigaction before;
static atomic_bool passing_on;
static pthread_mutex_t installing = PTHREAD_MUTEX_INITIALIZER;

/* Restores `action` and delivers the signal again: a fault repeats by itself, a sent signal is raised. */
static void redeliver(int number, const siginfo_t *info, const struct sigaction *action)
{
    (void)sigaction(number, action, NULL);
    if (info->si_code <= 0)
        (void)raise(number);
}

static void pass_on(int number, siginfo_t *info, void *frame)
{
    const struct sigaction default_action = {.sa_handler = SIG_DFL};
    if (!(before.sa_flags & SA_SIGINFO) && before.sa_handler == SIG_IGN && info->si_code <= 0)
        return;
    if (!(before.sa_flags & SA_SIGINFO) && (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN)) {
        redeliver(number, info, &default_action);
        return;
    }
    /* faulthandler restores the handler that it found and raises. If it found ours, this is the second
     * call. */
    if (info->si_code <= 0 && atomic_load(&passing_on)) {
        redeliver(number, info, &default_action);
        return;
    }
    atomic_store(&passing_on, true); /* it stays set if the handler leaves by a longjmp */
    if (before.sa_flags & SA_SIGINFO)
        before.sa_sigaction(number, info, frame);
    else
        before.sa_handler(number);
    atomic_store(&passing_on, false);
}

static void on_bus_error(int number, siginfo_t *info, void *frame)
{
    greg_t *gregs = ((ucontext_t *)frame)->uc_mcontext.gregs;
    if (info->si_code > 0 && gregs[REG_RIP] == (greg_t)guarded_copy_may_fault)
        gregs[REG_RIP] = (greg_t)guarded_copy_ends;
    else
        pass_on(number, info, frame);
}

/* Called before every run, because others install their handlers without calling the earlier one. */
static bool install(void)
{
    struct sigaction now;
    pthread_mutex_lock(&installing);
    bool installed = sigaction(SIGBUS, NULL, &now) == 0;
    if (installed && !(now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_bus_error)) {
        before = now;
        /* SA_NODEFER: the earlier handler may raise SIGBUS itself, and must not wait until ours returns. */
        struct sigaction ours = {.sa_sigaction = on_bus_error,
                                 .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
        sigemptyset(&ours.sa_mask);
        installed = sigaction(SIGBUS, &ours, NULL) == 0;
    }
    pthread_mutex_unlock(&installing);
    return installed;
}

static void let_in(void)
{
    sigset_t bus;
    sigemptyset(&bus);
    sigaddset(&bus, SIGBUS);
    pthread_sigmask(SIG_UNBLOCK, &bus, NULL); /* vm_leave() restores the caller's mask */
}

static void map_devices(struct vm *vm)
{
    vm->map_devices = NULL;
    vm->devices_mapped = true;
    if (!install())
        return;
    let_in();
    devices_map(vm, true);
}

void copy_fault_prepare(struct vm *vm)
{
    if (!vm->devices_mapped) {
        vm->map_devices = devices_can_map(vm) ? map_devices : NULL;
        return;
    }
    (void)install();
    let_in();
}
