/* Serves the network ring; ring.h has the contract. */
#include "ring.h"

#include <sched.h>
#include <string.h>

#include "entered.h"
#include "net_frame.h"

/*
 * A guest is busy with frames if this many kicks in a row each come within the time that this many
 * kicks cost. A worker takes a whole processor, even while it finds nothing.
 */
#define QUICK_KICKS  16u
#define QUICK_MIN_NS 20000u /* for a host where an exit and a system call take a few microseconds or less */
#define QUICK_MAX_NS 2000000u
#define YIELDS       3u /* how often the worker yields; the scheduler may return from the first immediately */

/*
 * The area after the ring, which the guest does not use. It holds the large frame that is cut, and
 * the frames that wait. The first waiting frame waits until the last has come, so they are few.
 */
#define CUT_AT        (HVT_RING_AREA_BYTES / 2)
#define WAITING_AT    (CUT_AT + 0x20000u)
#define WAITING_BYTES 2048u
_Static_assert(sizeof(struct hvt_net_ring) <= CUT_AT && TCP_LARGE_MAX < WAITING_AT - CUT_AT &&
                   WAITING_AT + RING_WAITING_MAX * WAITING_BYTES <= HVT_RING_AREA_BYTES,
               "each has its place in the area");

void ring_offer(struct vm *vm, void *shared, uint32_t mode)
{
    struct net_vm *nets = net_vm(vm);
    struct net_ring *ring = &nets->ring;
    ring->shared = shared;
    vm->doorbell = shared ? ring_kicked : NULL;
    nets->cut = (struct tcp_cut){.frame = shared ? (uint8_t *)shared + CUT_AT : NULL};
    atomic_store(&nets->cut_left, false);
    ring->mode = mode;
    ring->ent_head = ring->com_tail = ring->waiting = 0;
    ring->found = false;
    ring->kicked_ns = 0;
    ring->kick_cost_ns = UINT64_MAX;
    ring->quick_kicks = 0;
    ring->vcpu_serves = ring->woken = false;
    pthread_mutex_init(&ring->serving, NULL); /* it needs no pthread_mutex_destroy() */
    if (shared)
        ring_want_kicks(vm, true);
}

uint32_t ring_posted(const struct vm *vm)
{
    /* pairs with the guest's store: the entry is complete before the tail moves */
    return __atomic_load_n(&net_vm(vm)->ring.shared->ent_tail, __ATOMIC_ACQUIRE);
}

/*
 * Writes a word of the ring. Pairs with the guest, which reads the word and then the data that it
 * covers.
 */
static void set_word(struct vm *vm, uint32_t *word, uint32_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
    entered(&vm->memory, word, sizeof *word, ENTERED_RING);
}

void ring_want_kicks(struct vm *vm, bool wanted)
{
    set_word(vm, &net_vm(vm)->ring.shared->needs_kick, wanted);
}

/*
 * Reads each field once, so that the checked value is the used value, whatever the guest writes
 * meanwhile.
 */
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

static void post_commit(struct vm *vm, struct hvt_ring_commit commit)
{
    struct net_ring *ring = &net_vm(vm)->ring;
    guest_put(&vm->memory, &ring->shared->commits[ring->com_tail % HVT_RING_ENTRIES], &commit, sizeof commit,
              ENTERED_RING);
    set_word(vm, &ring->shared->com_tail, ++ring->com_tail);
}

/* ---- Frames to send: where the guest posted them, or where they wait */

struct frame {
    const uint8_t *data; /* NULL: there is no frame that can be sent */
    uint32_t handle, len;
};

static uint8_t *waiting_buffer(const struct net_ring *ring, uint32_t index)
{
    return (uint8_t *)ring->shared + WAITING_AT + index * WAITING_BYTES;
}

/* Returns the frame of the entry that is `index` entries after ent_head. */
static struct frame posted_frame(struct vm *vm, uint32_t index)
{
    const struct hvt_ring_entry entry = entry_at(net_vm(vm)->ring.shared, net_vm(vm)->ring.ent_head + index);
    struct frame frame = {.handle = entry.handle, .len = entry.len};
    if (entry.operation == HVT_RING_WRITE)
        frame.data = guest_bytes_at(&vm->memory, entry.data, entry.len);
    return frame;
}

static struct frame waiting_frame(struct vm *vm, uint32_t index)
{
    const struct net_ring *ring = &net_vm(vm)->ring;
    return (struct frame){waiting_buffer(ring, index), ring->waits[index].handle, ring->waits[index].len};
}

/*
 * Sends the frame `at` and those after it as one large frame, if they are segments that can be
 * joined. Returns how many were sent. `refused` is set to how many the kernel refused as one frame
 * (no memory for so much, a full queue).
 */
static uint32_t send_joined(struct vm *vm, struct frame (*frame_at)(struct vm *, uint32_t), uint32_t at,
                            uint32_t count, uint32_t *refused)
{
    const struct frame first = frame_at(vm, at);
    const struct vm_device *device = net_device(vm, first.handle);
    struct tcp_joined joined;
    if (count < 2 || !first.data || !device || !net_of(device)->segments ||
        !tcp_join_first(&joined, first.data, first.len))
        return 0;
    for (uint32_t i = 1; i < count; i++) {
        const struct frame next = frame_at(vm, at + i);
        if (!next.data || next.handle != first.handle || !tcp_join_next(&joined, next.data, next.len))
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

static void send_waiting(struct vm *vm)
{
    struct net_ring *ring = &net_vm(vm)->ring;
    uint32_t single = 0; /* how many to send one by one, because they were refused as one */
    for (uint32_t at = 0; at < ring->waiting;) {
        uint32_t sent = single ? 0 : send_joined(vm, waiting_frame, at, ring->waiting - at, &single);
        if (!sent) {
            const struct frame frame = waiting_frame(vm, at);
            (void)net_send(vm, &vm->shared->ring_counters, net_device(vm, frame.handle), frame.data,
                           frame.len, NULL);
            sent = 1;
            single -= single > 0;
        }
        at += sent;
    }
    ring->waiting = 0;
}

/* Copies a frame that may wait. Returns false if it may not. */
static bool add_waiting(struct vm *vm, const struct hvt_ring_entry *entry)
{
    struct net_ring *ring = &net_vm(vm)->ring;
    const void *data = guest_bytes_at(&vm->memory, entry->data, entry->len);
    if (!data || entry->len > WAITING_BYTES || !net_device(vm, entry->handle))
        return false;
    guest_put(&vm->memory, waiting_buffer(ring, ring->waiting), data, entry->len, ENTERED_RING);
    ring->waits[ring->waiting].handle = entry->handle;
    ring->waits[ring->waiting].len = entry->len;
    if (++ring->waiting == RING_WAITING_MAX)
        send_waiting(vm);
    return true;
}

/* ---- Entries */

/* Ends the run because of an entry's address, like the hypercall `number` with the same address would. */
static bool end_run_at_entry(struct vm *vm, uint32_t number, const struct hvt_ring_entry *entry)
{
    vm->fault =
        (struct vm_event){.kind = EVENT_BAD_ACCESS, .number = number, .gpa = entry->data, .len = entry->len};
    atomic_store_explicit(&vm->has_fault, true, memory_order_release); /* pairs with exit_stopped() */
    return false;
}

static void yield_processor(const struct net_ring *ring)
{
    for (uint32_t i = 0; ring->may_yield && i < YIELDS; i++)
        sched_yield();
}

/* Returns false if the entry ends the run. */
static bool serve_write(struct vm *vm, const struct hvt_ring_entry *entry, bool may_wait)
{
    if (may_wait && add_waiting(vm, entry))
        return true;
    send_waiting(vm); /* keeps the order */
    /* The guest gets no result: it does not wait for one. */
    return net_send_from(vm, &vm->shared->ring_counters, entry->handle, entry->data, entry->len, NULL) !=
               DEVICE_BAD_RANGE ||
           end_run_at_entry(vm, HVT_HYPERCALL_NET_WRITE, entry);
}

static bool serve_read(struct vm *vm, const struct hvt_ring_entry *entry)
{
    struct net_ring *ring = &net_vm(vm)->ring;
    struct vm_counters *counters = &vm->shared->ring_counters;
    uint64_t len = entry->len;
    enum device_answer ret = net_receive_to(vm, counters, entry->handle, entry->data, &len, NULL);
    if (ret != DEVICE_DONE && ring->waiting) {
        send_waiting(vm); /* these frames may cause an answer to arrive */
        yield_processor(ring);
        len = entry->len;
        ret = net_receive_to(vm, counters, entry->handle, entry->data, &len, NULL);
    }
    ring->found = ret == DEVICE_DONE;
    if (ret == DEVICE_BAD_RANGE)
        return end_run_at_entry(vm, HVT_HYPERCALL_NET_READ, entry);
    post_commit(vm, (struct hvt_ring_commit){
                        .id = entry->id, .ret = ret, .len = ret == DEVICE_DONE ? (uint32_t)len : 0});
    return true;
}

static bool serve_entry(struct vm *vm, const struct hvt_ring_entry *entry, bool may_wait)
{
    switch (entry->operation) {
    case HVT_RING_WRITE:
        return serve_write(vm, entry, may_wait);
    case HVT_RING_READ:
        return serve_read(vm, entry);
    default:
        return true;
    }
}

static int32_t serve(struct vm *vm, bool busy)
{
    struct net_ring *ring = &net_vm(vm)->ring;
    uint32_t posted = ring_posted(vm) - ring->ent_head;
    if (posted > HVT_RING_ENTRIES) /* the guest's index is false */
        posted = HVT_RING_ENTRIES;
    uint32_t single = 0; /* how many to send one by one, because they were refused as one */
    for (uint32_t left = posted; left;) {
        const bool may_wait = busy && ring->found;
        uint32_t served = single || may_wait ? 0 : send_joined(vm, posted_frame, 0, left, &single);
        if (!served) {
            const struct hvt_ring_entry entry = entry_at(ring->shared, ring->ent_head);
            if (!serve_entry(vm, &entry, may_wait))
                return -1;
            served = 1;
            single -= single > 0;
        }
        left -= served;
        ring->ent_head += served;
        /* after each, so that a guest that waits for space does not wait for all of them */
        set_word(vm, &ring->shared->ent_head, ring->ent_head);
    }
    return (int32_t)posted;
}

int32_t ring_serve(struct vm *vm)
{
    send_waiting(vm);
    return serve(vm, false);
}

int32_t ring_serve_busy(struct vm *vm)
{
    return serve(vm, true);
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
    struct net_ring *ring = &net_vm(vm)->ring;
    vm->shared->counters.net_ring_kicks++;
    if (pthread_mutex_trylock(&ring->serving) != 0)
        return CONTINUE; /* the worker serves; it looks again after it releases the lock (ring_worker.c) */
    ring->vcpu_serves = true;
    int32_t served = ring_serve(vm);
    ring->vcpu_serves = false;
    pthread_mutex_unlock(&ring->serving);
    if (served < 0)
        return exit_stopped(vm);
    if (ring->mode == RING_WORKER ||
        (ring->mode == RING_ADAPTIVE && ring_kicks_come_fast(ring, monotonic_ns())))
        if (!ring_worker_wake(vm))
            ring->mode = RING_INLINE;
    return net_needs_check(vm) ? net_check_detached(vm) : CONTINUE;
}

void ring_end(struct vm *vm)
{
    if (!net_vm(vm)->ring.shared)
        return;
    ring_worker_stop(vm);
    bool broken = atomic_load(&vm->has_fault) || ring_serve(vm) < 0;
    if (broken && vm->shared->event.kind == EVENT_HALT)
        (void)exit_stopped(vm);
}
