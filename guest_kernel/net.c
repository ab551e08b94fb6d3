/*
 * Sends and receives frames: in batches if the tender grants them (net_queue.c), otherwise through
 * the network ring if boot info offers one, otherwise with one hypercall per frame.
 *
 *   guest: writes an entry, adds 1 to ent_tail, and kicks if the host asks for it; a read waits for
 *          its commit
 *   host:  serves entries in order and adds 1 to ent_head for each; a read gets a commit, which adds 1
 *          to com_tail
 *
 * A frame to send is copied, so that the caller can reuse its buffer immediately. The copies take a
 * piece of the heap at the first net_open(), so a unikernel that uses no network needs no memory
 * for them. If the heap has no space, all frames go by hypercalls. A frame that is larger than a
 * copy's buffer also goes by hypercall, after all frames that were sent before it.
 */
#include "kernel.h"

#define COPIES     256u  /* frames that the host has not taken yet; before one more, we wait for the host */
#define COPY_BYTES 2048u /* holds a frame of an ordinary MTU */
_Static_assert(HVT_RING_ENTRIES % COPIES == 0,
               "an entry's copy is free once the entry COPIES before is served");

static struct hvt_net_ring *ring; /* NULL: the host offers none, or there is no space for copies */
static uint8_t (*copies)[COPY_BYTES];
static uint32_t ent_tail, com_head; /* the guest's own indices; the ring contains copies for the host */

static void ring_open(void)
{
    const struct hvt_boot_info *boot = (const struct hvt_boot_info *)HVT_BOOT_INFO_GPA;
    if (copies || !(boot->host_features & HVT_FEATURE_NET_RING) || !boot->net_ring) {
        return;
    }
    copies = guest_alloc(COPIES * sizeof(*copies));
    if (copies) {
        ring = (struct hvt_net_ring *)boot->net_ring;
    }
}

/*
 * Waits until the host has at most `most` entries left to serve. The host is awake, or this file
 * has kicked it.
 */
static void ring_wait(uint32_t most)
{
    while (ent_tail - __atomic_load_n(&ring->ent_head, __ATOMIC_ACQUIRE) > most) {
        __builtin_ia32_pause();
    }
}

static void ring_post(struct hvt_ring_entry entry)
{
    ring->entries[ent_tail % HVT_RING_ENTRIES] = entry;
    __atomic_store_n(&ring->ent_tail, ++ent_tail, __ATOMIC_RELEASE);
    /*
     * The guest writes the tail, then reads needs_kick. The host sets needs_kick, then reads the
     * tail. So at least one of the two sees the other's write.
     */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (__atomic_load_n(&ring->needs_kick, __ATOMIC_RELAXED)) {
        gate_net_kick();
    }
}

enum guest_result net_open(const char *name, struct net_device *device)
{
    const struct mft_entry *entry = manifest_entry(name, MFT_NET_BASIC, &device->handle);
    if (!entry) {
        return GUEST_EINVAL;
    }
    memcpy(device->mac, entry->u.net.mac, sizeof(device->mac));
    device->mtu = entry->u.net.mtu;
    device->offload = 0;
    if (!net_queue_open(device)) {
        ring_open();
    }
    return GUEST_OK;
}

enum guest_result net_write(const struct net_device *device, const void *frame, size_t len)
{
    struct net_queue *queue = net_queue_of(device);
    if (queue) {
        return net_queue_write(queue, frame, len);
    }
    if (ring && len <= COPY_BYTES) {
        ring_wait(COPIES - 1);
        uint8_t *copy = copies[ent_tail % COPIES];
        memcpy(copy, frame, len);
        ring_post((struct hvt_ring_entry){.operation = HVT_RING_WRITE,
                                          .handle = (uint32_t)device->handle,
                                          .data = gpa_of(copy),
                                          .len = (uint32_t)len});
        return GUEST_OK;
    }
    if (ring) {
        ring_wait(0);
    }
    struct hvt_net_write call = {.handle = device->handle, .data = gpa_of(frame), .len = len};
    gate_net_write(&call);
    return (enum guest_result)call.ret;
}

static enum guest_result ring_read(const struct net_device *device, void *frame, size_t size, size_t *len)
{
    ring_post((struct hvt_ring_entry){.operation = HVT_RING_READ,
                                      .handle = (uint32_t)device->handle,
                                      .data = gpa_of(frame),
                                      .len = size < UINT32_MAX ? (uint32_t)size : UINT32_MAX});
    while (__atomic_load_n(&ring->com_tail, __ATOMIC_ACQUIRE) == com_head) {
        __builtin_ia32_pause();
    }
    const struct hvt_ring_commit commit = ring->commits[com_head % HVT_RING_ENTRIES];
    __atomic_store_n(&ring->com_head, ++com_head, __ATOMIC_RELEASE);
    if (commit.ret == HVT_R_OK) {
        *len = commit.len;
    }
    return (enum guest_result)commit.ret;
}

enum guest_result net_read(const struct net_device *device, void *frame, size_t size, size_t *len)
{
    struct net_queue *queue = net_queue_of(device);
    if (queue) {
        return net_queue_read(queue, frame, size, len);
    }
    /* To wake a sleeping host takes longer than a hypercall takes. */
    if (ring && !__atomic_load_n(&ring->needs_kick, __ATOMIC_RELAXED)) {
        ring_wait(COPIES);
        return ring_read(device, frame, size, len);
    }
    struct hvt_net_read call = {.handle = device->handle, .data = gpa_of(frame), .len = size};
    gate_net_read(&call);
    if (call.ret == HVT_R_OK) {
        *len = call.len;
    }
    return (enum guest_result)call.ret;
}
