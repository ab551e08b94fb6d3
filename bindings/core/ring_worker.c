/*
 * The ring's own thread. It sleeps until it is woken, then holds the ring: the guest need not kick, and it
 * looks for entries until none has come for a while.
 */
#define _GNU_SOURCE
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

/* Until nothing has come for a while. False: it found what ends the run. */
static bool serve_while_busy(struct vm *vm)
{
    uint32_t looks = 0;
    while (looks < LOOKS_BEFORE_SLEEP && !is_to_quit(&vm->ring)) {
        int32_t served = ring_serve(vm);
        if (served < 0)
            return false;
        looks = served ? 0 : looks + 1;
        __builtin_ia32_pause();
    }
    return true;
}

static void *work(void *argument)
{
    struct vm *vm = argument;
    struct net_ring *ring = &vm->ring;
    bool sound = true;
    (void)prctl(PR_SET_NAME, "tender-ring");
    while (!is_to_quit(ring)) {
        uint64_t woken;
        pthread_mutex_lock(&ring->serving);
        ring_want_kicks(vm, false);
        sound = serve_while_busy(vm);
        ring_want_kicks(vm, true);
        const uint32_t served = ring->ent_head;
        pthread_mutex_unlock(&ring->serving);
        if (!sound)
            break;
        /* The guest posts, then looks whether to kick; its kick finds the ring free, or was before we let go.
         * We let go, then look for what it posted. Pairs with the guest's fence. */
        atomic_thread_fence(memory_order_seq_cst);
        if (ring_posted(vm) == served && !is_to_quit(ring))
            (void)!read(ring->wake_fd, &woken, sizeof woken);
    }
    if (!sound)
        vm_stop(vm);
    return NULL;
}

static int start_thread(struct vm *vm)
{
    pthread_attr_t attributes;
    int error = pthread_attr_init(&attributes);
    if (error)
        return error;
    sigset_t all, saved;
    sigfillset(&all); /* signals are for those who handle them */
    pthread_sigmask(SIG_SETMASK, &all, &saved);
    error = pthread_attr_setstacksize(&attributes, STACK_BYTES);
    if (!error)
        error = pthread_create(&vm->ring.thread, &attributes, work, vm);
    pthread_sigmask(SIG_SETMASK, &saved, NULL);
    pthread_attr_destroy(&attributes);
    return error;
}

static void wake(const struct net_ring *ring)
{
    const uint64_t one = 1;
    (void)!write(ring->wake_fd, &one, sizeof one);
}

bool ring_worker_wake(struct vm *vm)
{
    struct net_ring *ring = &vm->ring;
    if (ring->has_worker) {
        wake(ring);
        return true;
    }
    ring->wake_fd = eventfd(0, EFD_CLOEXEC);
    if (ring->wake_fd < 0)
        return false;
    ring->process = getpid();
    atomic_store(&ring->quit, false);
    if (start_thread(vm) != 0) {
        close(ring->wake_fd);
        return false;
    }
    ring->has_worker = true;
    return true;
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
    }
    close(ring->wake_fd);
    ring->has_worker = false;
}
