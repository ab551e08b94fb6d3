#include "ring.h"

#include "net_frame.h"

/* So many kicks, each within the time that as many kicks cost, are of a guest that is busy with frames. A
 * worker takes a whole processor, also while it only looks. */
#define QUICK_KICKS  16u
#define QUICK_MIN_NS 20000u /* where an exit and a system call take some microseconds each, or less */
#define QUICK_MAX_NS 2000000u
#define AHEAD_MAX    32u /* entries that may wait: the last answer of so many delays the first */

void ring_offer(struct vm *vm, struct hvt_net_ring *shared, uint32_t mode)
{
    vm->ring.shared = shared;
    _Static_assert(sizeof *shared <= HVT_RING_ROOM_BYTES / 2 && TCP_LARGE_MAX < HVT_RING_ROOM_BYTES / 2,
                   "ring and large frame have their halves of the room");
    vm->cut = (struct tcp_cut){.frame = (uint8_t *)shared + HVT_RING_ROOM_BYTES / 2};
    atomic_store(&vm->cut_left, false);
    vm->ring.mode = mode;
    vm->ring.ent_head = vm->ring.com_tail = vm->ring.ahead = 0;
    vm->ring.found = false;
    vm->ring.kicked_ns = 0;
    vm->ring.kick_cost_ns = UINT64_MAX;
    vm->ring.quick_kicks = 0;
    vm->ring.vcpu_serves = false;
    atomic_store(&vm->ring.broken, false);
    pthread_mutex_init(&vm->ring.serving, NULL); /* it needs no end: what it guards does */
    ring_want_kicks(vm, true);
}

uint32_t ring_posted(const struct vm *vm)
{
    /* pairs with the guest's store: its entry is complete before its tail moves */
    return __atomic_load_n(&vm->ring.shared->ent_tail, __ATOMIC_ACQUIRE);
}

void ring_want_kicks(struct vm *vm, bool wanted)
{
    __atomic_store_n(&vm->ring.shared->needs_kick, wanted, __ATOMIC_RELAXED);
}

/* Each field once: what is checked is what is used, whatever the guest writes there meanwhile. */
static struct hvt_ring_entry entry_at(const struct hvt_net_ring *shared, uint32_t index)
{
    const struct hvt_ring_entry *entry = &shared->entries[index % HVT_RING_ENTRIES];
    return (struct hvt_ring_entry){
        .operation = __atomic_load_n(&entry->operation, __ATOMIC_RELAXED),
        .handle = __atomic_load_n(&entry->handle, __ATOMIC_RELAXED),
        .data = __atomic_load_n(&entry->data, __ATOMIC_RELAXED),
        .len = __atomic_load_n(&entry->len, __ATOMIC_RELAXED),
        .id = __atomic_load_n(&entry->id, __ATOMIC_RELAXED),
    };
}

static void post_commit(struct net_ring *ring, struct hvt_ring_commit commit)
{
    ring->shared->commits[ring->com_tail % HVT_RING_ENTRIES] = commit;
    /* pairs with the guest, which reads the tail and then the commit */
    __atomic_store_n(&ring->shared->com_tail, ++ring->com_tail, __ATOMIC_RELEASE);
}

/* As a hypercall's structure that names such memory: with the number of that one. */
static void ring_break(struct net_ring *ring, uint32_t number, const struct hvt_ring_entry *entry)
{
    ring->fault =
        (struct vm_event){.kind = EVENT_BAD_ACCESS, .number = number, .gpa = entry->data, .len = entry->len};
    atomic_store_explicit(&ring->broken, true, memory_order_release); /* pairs with leave_stopped() */
}

enum served { ENDS_RUN, SERVED, FOUND_NONE };

/* `answer_none`: that there is no frame is an answer too. If not, such a read is still to be served. */
static enum served serve_read(struct vm *vm, const struct hvt_ring_entry *entry, bool answer_none)
{
    struct net_ring *ring = &vm->ring;
    uint64_t len = entry->len;
    const int32_t ret = net_receive(vm, &vm->shared->ring_counters, entry->handle, entry->data, &len, NULL);
    if (ret == NET_BAD_RANGE) {
        ring_break(ring, HVT_HYPERCALL_NET_READ, entry);
        return ENDS_RUN;
    }
    ring->found = ret == HVT_R_OK;
    if (ret == HVT_R_AGAIN && !answer_none)
        return FOUND_NONE;
    post_commit(ring, (struct hvt_ring_commit){
                          .id = entry->id, .ret = ret, .len = ret == HVT_R_OK ? (uint32_t)len : 0});
    return SERVED;
}

/* False: it ends the run. */
static bool serve_entry(struct vm *vm, const struct hvt_ring_entry *entry)
{
    switch (entry->operation) {
    case HVT_RING_WRITE: /* what it comes to is not told: the guest does not wait for it */
        if (net_send(vm, &vm->shared->ring_counters, entry->handle, entry->data, entry->len, NULL) !=
            NET_BAD_RANGE)
            return true;
        ring_break(&vm->ring, HVT_HYPERCALL_NET_WRITE, entry);
        return false;
    case HVT_RING_READ:
        return serve_read(vm, entry, true) == SERVED;
    default:
        return true;
    }
}

/* The entry at our head and those behind it, if they are segments that can be sent as one: how many were.
 * `refused`: how many the kernel did not take as one (no memory for so much, a full queue). */
static uint32_t serve_joined(struct vm *vm, const struct hvt_ring_entry *first, uint32_t posted,
                             uint32_t *refused)
{
    const struct vm_device *device = net_device(vm, first->handle);
    struct tcp_joined joined;
    if (posted < 2 || first->operation != HVT_RING_WRITE || !device || !device->segments)
        return 0;
    const uint8_t *data = guest_memory_at(&vm->memory, first->data, first->len, GUEST_READABLE);
    if (!data || !tcp_join_first(&joined, data, first->len))
        return 0;
    for (uint32_t i = 1; i < posted; i++) {
        const struct hvt_ring_entry next = entry_at(vm->ring.shared, vm->ring.ent_head + i);
        if (next.operation != HVT_RING_WRITE || next.handle != first->handle)
            break;
        data = guest_memory_at(&vm->memory, next.data, next.len, GUEST_READABLE);
        if (!data || !tcp_join_next(&joined, data, next.len))
            break;
    }
    if (joined.count < 2)
        return 0;
    tcp_join_end(&joined);
    if (net_send_joined(device, &vm->shared->ring_counters, &joined))
        return joined.count;
    *refused = joined.count;
    return 0;
}

/* How many entries from our head on. */
static uint32_t posted_behind_head(const struct vm *vm)
{
    const uint32_t posted = ring_posted(vm) - vm->ring.ent_head;
    return posted < HVT_RING_ENTRIES ? posted : HVT_RING_ENTRIES; /* more is a lie */
}

int32_t ring_serve(struct vm *vm)
{
    struct net_ring *ring = &vm->ring;
    const uint32_t posted = posted_behind_head(vm);
    uint32_t single = 0; /* so many are sent one by one: together they were refused */
    for (uint32_t left = posted; left;) {
        const struct hvt_ring_entry entry = entry_at(ring->shared, ring->ent_head);
        uint32_t served = single ? 0 : serve_joined(vm, &entry, left, &single);
        if (!served) {
            const bool done = ring->ahead && entry.operation == HVT_RING_READ;
            if (!done && !serve_entry(vm, &entry))
                return -1;
            served = 1;
            single -= single > 0;
        }
        left -= served;
        ring->ent_head += served;
        ring->ahead -= served < ring->ahead ? served : ring->ahead;
        /* at each, so that a guest which waits for room need not wait for all of them */
        __atomic_store_n(&ring->shared->ent_head, ring->ent_head, __ATOMIC_RELEASE);
    }
    return (int32_t)posted;
}

int32_t ring_serve_ahead(struct vm *vm)
{
    struct net_ring *ring = &vm->ring;
    const uint32_t posted = posted_behind_head(vm);
    int32_t seen = 0;
    for (; ring->ahead < posted; ring->ahead++, seen++) {
        const struct hvt_ring_entry entry = entry_at(ring->shared, ring->ent_head + ring->ahead);
        if (entry.operation != HVT_RING_READ)
            continue;
        /* What finds no frame ahead of writes is served behind them: theirs may be what brings one. */
        const enum served served = serve_read(vm, &entry, ring->ahead == 0);
        if (served == ENDS_RUN)
            return -1;
        if (served == FOUND_NONE)
            break;
    }
    return ring->found && ring->ahead < AHEAD_MAX ? seen : ring_serve(vm);
}

uint64_t ring_quick_ns(const struct net_ring *ring)
{
    const uint64_t cost_ns = __atomic_load_n(&ring->kick_cost_ns, __ATOMIC_RELAXED);
    if (cost_ns >= QUICK_MAX_NS / QUICK_KICKS)
        return QUICK_MAX_NS;
    const uint64_t ns = QUICK_KICKS * cost_ns;
    return ns > QUICK_MIN_NS ? ns : QUICK_MIN_NS;
}

bool ring_kicks_come_fast(struct net_ring *ring, uint64_t now_ns)
{
    const uint64_t since_ns = now_ns - ring->kicked_ns;
    ring->kicked_ns = now_ns;
    if (since_ns < ring->kick_cost_ns)
        __atomic_store_n(&ring->kick_cost_ns, since_ns, __ATOMIC_RELAXED); /* the worker reads it */
    ring->quick_kicks = since_ns < ring_quick_ns(ring) ? ring->quick_kicks + 1 : 0;
    if (ring->quick_kicks < QUICK_KICKS)
        return false;
    ring->quick_kicks = 0;
    return true;
}

enum verdict ring_kicked(struct vm *vm)
{
    struct net_ring *ring = &vm->ring;
    vm->shared->counters.net_ring_kicks++;
    if (pthread_mutex_trylock(&ring->serving) != 0)
        return CONTINUE; /* the worker's; it looks once more when it has let go (ring_worker.c) */
    ring->vcpu_serves = true;
    int32_t served = ring_serve(vm);
    ring->vcpu_serves = false;
    pthread_mutex_unlock(&ring->serving);
    if (served < 0)
        return leave_stopped(vm);
    if (ring->mode == RING_WORKER ||
        (ring->mode == RING_ADAPTIVE && ring_kicks_come_fast(ring, monotonic_ns())))
        if (!ring_worker_wake(vm))
            ring->mode = RING_INLINE;
    return net_is_unsettled(vm) ? net_settle(vm) : CONTINUE;
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
