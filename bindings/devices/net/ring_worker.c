/*
 * The ring's worker thread. It sleeps until it is woken. Then it holds the ring and looks for
 * entries until none has come for a while. During that time the guest need not kick.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "device.h"
#include "quiet_thread.h"
#include "ring.h"

#define LOOKS_PER_CLOCK_READING 32u /* looks for entries between two readings of the clock */
#define QUICKS_BEFORE_SLEEP     4u  /* to sleep costs sixteen kicks until the next wake-up, and the wake-up */
#define STACK_BYTES             0x20000
#define HEAP_MIN                (2u << 20)  /* bytes that must remain for the guest after its bss */
#define SPARE_MIN               (32u << 20) /* with this much memory, a guest can spare the ring's area */

static bool must_quit(const struct net_ring *ring)
{
    return atomic_load_explicit(&ring->quit, memory_order_relaxed);
}

/* Serves until nothing has come for a while. Returns false if an entry ends the run. */
static bool serve_while_busy(struct vm *vm)
{
    const uint64_t limit_ns = QUICKS_BEFORE_SLEEP * ring_quick_ns(&net_vm(vm)->ring);
    uint64_t idle_since_ns = 0;
    uint32_t looks = 0;
    while (!must_quit(&net_vm(vm)->ring)) {
        /* This limits how long a frame waits for the guest's next read. */
        const bool idle = looks >= LOOKS_PER_CLOCK_READING;
        const int32_t served = idle ? ring_serve(vm) : ring_serve_busy(vm);
        if (served < 0)
            return false;
        looks = served ? 0 : looks + 1;
        if (looks == LOOKS_PER_CLOCK_READING)
            idle_since_ns = monotonic_ns();
        else if (looks && looks % LOOKS_PER_CLOCK_READING == 0 && monotonic_ns() - idle_since_ns > limit_ns)
            break;
        __builtin_ia32_pause();
    }
    return true;
}

static void *work(void *argument)
{
    struct vm *vm = argument;
    struct net_ring *ring = &net_vm(vm)->ring;
    bool sound = true;
    uint64_t woken;
    (void)prctl(PR_SET_NAME, "tender-ring");
    if (ring->kept) {
        sem_post(&ring->asleep);
        (void)!read(ring->wake_fd, &woken, sizeof woken);
    }
    while (!must_quit(ring)) {
        pthread_mutex_lock(&ring->serving);
        ring_want_kicks(vm, false);
        sound = serve_while_busy(vm);
        ring_want_kicks(vm, true);
        const uint32_t served = ring->ent_head;
        pthread_mutex_unlock(&ring->serving);
        if (!sound)
            break;
        /*
         * The guest posts, then reads needs_kick. The worker releases the lock, then reads what the
         * guest posted. So either the guest's kick finds the lock free, or the worker sees the
         * entry. Pairs with the guest's fence.
         */
        atomic_thread_fence(memory_order_seq_cst);
        if (ring_posted(vm) == served && !must_quit(ring))
            (void)!read(ring->wake_fd, &woken, sizeof woken);
    }
    if (!sound)
        vm_stop(vm);
    if (ring->kept) {
        sem_post(&ring->done);
        for (;;) /* nobody writes to wake_fd any more, so this thread waits until the process ends */
            (void)!read(ring->wake_fd, &woken, sizeof woken);
    }
    return NULL;
}

static void wake(const struct net_ring *ring)
{
    const uint64_t one = 1;
    (void)!write(ring->wake_fd, &one, sizeof one);
}

static bool make_worker(struct vm *vm)
{
    struct net_ring *ring = &net_vm(vm)->ring;
    ring->wake_fd = eventfd(0, EFD_CLOEXEC);
    if (ring->wake_fd < 0)
        return false;
    atomic_store(&ring->quit, false);
    /* Tried here first: an inherited filter may refuse it, which would end the worker. */
    ring->may_yield = sched_yield() == 0;
    if (quiet_thread(&ring->thread, STACK_BYTES, work, vm) != 0) {
        close(ring->wake_fd);
        return false;
    }
    ring->has_worker = true;
    ring->process = getpid();
    return true;
}

bool ring_worker_wake(struct vm *vm)
{
    if (!net_vm(vm)->ring.woken) /* written before the worker can read it, and then never again */
        net_vm(vm)->ring.woken = true;
    if (!net_vm(vm)->ring.has_worker)
        return make_worker(vm);
    wake(&net_vm(vm)->ring);
    return true;
}

static void await(sem_t *semaphore)
{
    while (sem_wait(semaphore) < 0) /* EINTR: a SIGTERM */
        ;
}

void ring_worker_prepare(struct vm *vm)
{
    struct net_ring *ring = &net_vm(vm)->ring;
    ring->kept = true;
    sem_init(&ring->asleep, 0, 0);
    sem_init(&ring->done, 0, 0);
    if (make_worker(vm))
        await(&ring->asleep);
    else
        ring->mode = RING_INLINE; /* so that no kick tries to make a thread, which is then forbidden */
}

uint32_t ring_mode_for(gpa_t image_end, uint64_t mem_bytes, uint32_t wanted)
{
    cpu_set_t mine;
    if (mem_bytes < HVT_RING_AREA_BYTES + HEAP_MIN + image_end)
        return RING_NONE;
    if (wanted != RING_ADAPTIVE)
        return wanted;
    if (mem_bytes < SPARE_MIN)
        return RING_NONE;
    return sched_getaffinity(0, sizeof mine, &mine) == 0 && CPU_COUNT(&mine) < 2 ? RING_NONE : RING_ADAPTIVE;
}

void ring_worker_stop(struct vm *vm)
{
    struct net_ring *ring = &net_vm(vm)->ring;
    if (!ring->has_worker)
        return;
    ring->has_worker = false;
    if (ring->kept) { /* uses only an eventfd and a semaphore: see ring_worker_prepare() */
        atomic_store_explicit(&ring->quit, true, memory_order_relaxed);
        wake(ring);
        await(&ring->done);
        return;
    }
    if (ring->process == getpid()) { /* a forked child has the descriptor, but not the thread */
        atomic_store_explicit(&ring->quit, true, memory_order_relaxed);
        wake(ring);
        pthread_join(ring->thread, NULL);
    }
    close(ring->wake_fd);
}
