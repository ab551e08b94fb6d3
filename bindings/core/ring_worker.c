/*
 * The ring's own thread: it looks for entries, for a while; then it asks for kicks and sleeps until there is
 * one. The vCPU's thread starts it and joins it, and serves nothing in between.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "ring.h"

#define LOOKS_BEFORE_SLEEP 4096
#define STACK_BYTES        0x20000

static bool is_to_quit(const struct net_ring *ring)
{
    return atomic_load_explicit(&ring->quit, memory_order_relaxed);
}

/* Until a kick, or until it is to quit. */
static void sleep_until_kicked(struct vm *vm)
{
    struct net_ring *ring = &vm->ring;
    ring_want_kicks(vm, true);
    /* Pairs with the guest's fence between its tail and its look at needs_kick: one of the two sees the
     * other. */
    atomic_thread_fence(memory_order_seq_cst);
    uint64_t kicks;
    if (!ring_is_waiting(vm) && !is_to_quit(ring) &&
        read(ring->kick_fd, &kicks, sizeof kicks) == (ssize_t)sizeof kicks)
        vm->shared->ring_counters.net_ring_kicks += kicks;
    ring_want_kicks(vm, false);
}

static void *work(void *argument)
{
    struct vm *vm = argument;
    uint32_t looks = 0;
    (void)prctl(PR_SET_NAME, "tender-ring");
    ring_want_kicks(vm, false);
    while (!is_to_quit(&vm->ring)) {
        int32_t served = ring_serve(vm);
        if (served < 0) {
            vm_stop(vm);
            break;
        }
        if (served) {
            looks = 0;
        } else if (++looks < LOOKS_BEFORE_SLEEP) {
            __builtin_ia32_pause();
        } else {
            looks = 0;
            sleep_until_kicked(vm);
        }
    }
    return NULL;
}

static int start_thread(struct vm *vm)
{
    pthread_attr_t attributes;
    int error = pthread_attr_init(&attributes);
    if (error)
        return -error;
    sigset_t all, saved;
    sigfillset(&all); /* signals are for those who handle them */
    pthread_sigmask(SIG_SETMASK, &all, &saved);
    error = pthread_attr_setstacksize(&attributes, STACK_BYTES);
    if (!error)
        error = pthread_create(&vm->ring.thread, &attributes, work, vm);
    pthread_sigmask(SIG_SETMASK, &saved, NULL);
    pthread_attr_destroy(&attributes);
    return -error;
}

int ring_worker_start(struct vm *vm)
{
    struct net_ring *ring = &vm->ring;
    ring->kick_fd = eventfd(0, EFD_CLOEXEC);
    if (ring->kick_fd < 0)
        return -errno;
    ring->process = getpid();
    atomic_store(&ring->quit, false);
    int error = start_thread(vm);
    if (error < 0) {
        close(ring->kick_fd);
        return error;
    }
    ring->has_worker = true;
    return 0;
}

static void wake(const struct net_ring *ring)
{
    const uint64_t one = 1;
    (void)!write(ring->kick_fd, &one, sizeof one);
}

void ring_worker_stop(struct vm *vm)
{
    struct net_ring *ring = &vm->ring;
    if (!ring->has_worker)
        return;
    if (ring->process == getpid()) { /* a fork has the descriptor, and not the thread */
        atomic_store_explicit(&ring->quit, true, memory_order_relaxed);
        wake(ring);
        pthread_join(ring->thread, NULL);
        ring_want_kicks(vm, true);
    }
    close(ring->kick_fd);
    ring->has_worker = false;
}

enum verdict ring_kicked(struct vm *vm)
{
    if (vm->ring.has_worker) {
        wake(&vm->ring);
        return CONTINUE;
    }
    vm->shared->ring_counters.net_ring_kicks++;
    return ring_serve(vm) < 0 ? leave_stopped(vm) : CONTINUE;
}

void ring_end(struct vm *vm)
{
    if (!vm->ring.shared)
        return;
    ring_worker_stop(vm);
    bool broken = atomic_load(&vm->ring.broken) || ring_serve(vm) < 0;
    if (broken && vm->shared->event.kind == EVENT_HALT)
        (void)leave_stopped(vm);
}
