/*
 * Frames around the limit of their buffer, on each path of received frames: whole with the same
 * length, or dropped and counted; never cut. Nothing after the buffer changes, not even for a
 * moment where another thread may look. The network is one end of a socket pair. Prints one TAP
 * line for each check and exits with 1 if one fails.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "devices.h"
#include "holds.h"
#include "net_frame.h"
#include "ring.h"
#include "runner.h"

#define M         0x400000u
#define RODATA    0x200000u /* a page that the guest may not write, in the middle of memory */
#define ARGS      0x300000u
#define FRAMES    0x301000u
#define MIDDLE    0x320000u
#define NET       1
#define FRAME_MAX 65553u /* the limit of net_frame.c */
#define BEHIND    64u
#define LONGEST   (FRAME_MAX + 100)

static struct vm vm;
static struct hvt_net_ring *ring;
static int wire;
static uint8_t sent[10 + LONGEST]; /* preceded by space for a header */

struct answer {
    int32_t ret;
    uint64_t len;
};

/* ---- the paths of a frame */

static struct answer by_call(gpa_t data, uint32_t capacity)
{
    struct hvt_net_read call = {NET, data, capacity, 77};
    memcpy(vm.memory.hva + ARGS, &call, sizeof call);
    HOLDS(hypercall(&vm, HVT_HYPERCALL_NET_READ, ARGS) == CONTINUE);
    memcpy(&call, vm.memory.hva + ARGS, sizeof call);
    return (struct answer){call.ret, call.len};
}

static struct answer by_batch(gpa_t data, uint32_t capacity)
{
    const struct tender_net_frame frame = {.data = data, .len = capacity, .ret = 77};
    struct tender_net_batch batch = {.handle = NET, .frames = FRAMES, .rx_count = 1};
    struct tender_net_frame got;
    memcpy(vm.memory.hva + FRAMES, &frame, sizeof frame);
    memcpy(vm.memory.hva + ARGS, &batch, sizeof batch);
    HOLDS(hypercall_out(&vm, HVT_PORT_BASE + TENDER_HYPERCALL_NET_BATCH, ARGS) == CONTINUE);
    memcpy(&batch, vm.memory.hva + ARGS, sizeof batch);
    memcpy(&got, vm.memory.hva + FRAMES, sizeof got);
    return batch.rx_done ? (struct answer){got.ret, got.len} : (struct answer){HVT_R_AGAIN, 0};
}

static struct answer posted(gpa_t data, uint32_t capacity, void (*serve)(void))
{
    const uint32_t tail = ring->ent_tail, commits = ring->com_tail;
    ring->entries[tail % HVT_RING_ENTRIES] =
        (struct hvt_ring_entry){.operation = HVT_RING_READ, .handle = NET, .data = data, .len = capacity};
    __atomic_store_n(&ring->ent_tail, tail + 1, __ATOMIC_SEQ_CST);
    serve();
    HOLDS(ring->com_tail == commits + 1);
    const struct hvt_ring_commit commit = ring->commits[commits % HVT_RING_ENTRIES];
    return (struct answer){commit.ret, commit.len};
}

static void serve_kick(void)
{
    HOLDS(ring_kicked(&vm) == CONTINUE);
}

static void serve_as_worker(void)
{
    HOLDS(ring_serve(&vm) == 1);
}

static struct answer by_kick(gpa_t data, uint32_t capacity)
{
    return posted(data, capacity, serve_kick);
}

static struct answer by_worker(gpa_t data, uint32_t capacity)
{
    return posted(data, capacity, serve_as_worker);
}

static const struct way {
    const char *name;
    struct answer (*take)(gpa_t data, uint32_t capacity);
    bool header;  /* the device has a header before each frame */
    bool offload; /* the guest was granted the offload */
    bool others;  /* another thread may read guest memory meanwhile */
    bool counts_in_ring;
    bool segments; /* TCP segments are joined and cut */
} ways[] = {
    {"call", by_call, false, false, false, false, false},
    {"call, beside a worker", by_call, false, false, true, false, false},
    {"call, with a header", by_call, true, false, false, false, false},
    {"batch", by_batch, false, false, false, false, false},
    {"batch, beside a worker", by_batch, false, false, true, false, false},
    {"batch, with a header", by_batch, true, false, false, false, false},
    {"batch, with the offload", by_batch, true, true, false, false, false},
    {"ring, the vCPU's thread", by_kick, false, false, false, true, false},
    {"ring, the worker", by_worker, false, false, true, true, false},
    {"ring, with a header", by_kick, true, false, false, true, false},
    {"call, where segments are cut", by_call, true, false, true, false, true},
    {"ring, where segments are cut", by_worker, true, false, true, true, true},
};

/* ---- one frame */

static void set_up(int type, const struct way *way)
{
    int ends[2];
    const int bytes = 1 << 20;
    memset(&vm, 0, sizeof vm);
    if (vm_init(&vm) < 0 || socketpair(AF_UNIX, type | SOCK_NONBLOCK, 0, ends) < 0 ||
        setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes) < 0)
        abort();
    vm.memory.hva =
        mmap(NULL, M + HVT_RING_AREA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (vm.memory.hva == MAP_FAILED)
        abort();
    vm.memory.bytes = M;
    vm.memory.ranges[0] = (struct guest_range){RODATA, RODATA + HVT_PAGE_BYTES, SEGMENT_READ};
    vm.memory.range_count = 1;
    guest_memory_ranges_set(&vm.memory);
    vm.devices[NET] = net_on(ends[0], (struct net_device){.is_socket = true,
                                                          .has_header = way->header,
                                                          .segments = way->segments,
                                                          .offload = way->offload ? TENDER_OFFLOAD_CSUM : 0});
    vm.device_end = NET + 1;
    vm.count_of[MFT_NET_BASIC] = 1;
    vm.extensions =
        TENDER_FEATURE_GATE | TENDER_FEATURE_NET_BATCH | (way->offload ? TENDER_FEATURE_NET_OFFLOAD : 0);
    ring = (struct hvt_net_ring *)(void *)(vm.memory.hva + M);
    ring_offer(&vm, ring, RING_INLINE);
    net_vm(&vm)->ring.woken = way->others;
    wire = ends[1];
}

static void tear_down(void)
{
    close(vm.devices[NET].fd);
    close(wire);
    munmap(vm.memory.hva, M + HVT_RING_AREA_BYTES);
    vm.memory.hva = NULL;
    vm_release(&vm);
}

static void comes(const struct way *way, uint32_t len)
{
    const size_t before = way->header ? 10 : 0; /* of zeros: no work is left */
    HOLDS(send(wire, sent + 10 - before, before + len, 0) == (ssize_t)(before + len));
}

static bool all_are(const uint8_t *bytes, size_t len, uint8_t value)
{
    for (size_t i = 0; i < len; i++)
        if (bytes[i] != value)
            return false;
    return true;
}

/* A frame of `len` bytes, then one that fits, into `capacity` bytes at `data`. */
static bool comes_whole_or_is_counted(const struct way *way, gpa_t data, uint32_t capacity, uint32_t len)
{
    uint8_t *at = vm.memory.hva + data;
    const struct vm_counters *counters =
        way->counts_in_ring ? &vm.shared->ring_counters : &vm.shared->counters;
    const uint64_t drops = counters->net_rx_drops, packets = counters->net_rx_packets;
    const size_t behind = data + capacity + BEHIND <= M ? BEHIND : M - (data + capacity);
    memset(at, 0xa5, capacity + behind);
    comes(way, len);
    const uint32_t whole = len <= capacity ? len : 1;
    if (len > capacity)
        comes(way, whole);
    const struct answer answer = way->take(data, capacity);
    return answer.ret == HVT_R_OK && answer.len == whole && memcmp(at, sent + 10, whole) == 0 &&
           all_are(at + capacity, behind, 0xa5) && counters->net_rx_packets == packets + 1 &&
           counters->net_rx_drops == drops + (len > capacity) && way->take(data, capacity).ret == HVT_R_AGAIN;
}

/* The page after the buffer is read-only, so that not even a short write is possible. */
static bool leaves_the_next_page_unchanged(const struct way *way)
{
    const uint32_t capacity = 60;
    comes(way, capacity + 1);
    comes(way, capacity);
    HOLDS(mprotect(vm.memory.hva + MIDDLE, HVT_PAGE_BYTES, PROT_READ) == 0);
    const struct answer answer = way->take(MIDDLE - capacity, capacity);
    HOLDS(mprotect(vm.memory.hva + MIDDLE, HVT_PAGE_BYTES, PROT_READ | PROT_WRITE) == 0);
    return answer.ret == HVT_R_OK && answer.len == capacity;
}

int main(void)
{
    static const int types[] = {SOCK_DGRAM, SOCK_SEQPACKET};
    static const uint32_t buffers[] = {1, 60, 1514, 1518, 2048, 4096, 9014, FRAME_MAX - 1, FRAME_MAX};
    for (size_t i = 10; i < sizeof sent; i++)
        sent[i] = (uint8_t)(i * 7 + i / 256);
    for (size_t t = 0; t < sizeof types / sizeof *types; t++)
        for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
            const struct way *way = &ways[w];
            set_up(types[t], way);
            for (size_t r = 0; r < sizeof buffers / sizeof *buffers; r++) {
                const uint32_t capacity = buffers[r];
                const gpa_t places[] = {MIDDLE, M - capacity, RODATA - capacity, M - capacity - 1};
                const uint32_t lens[] = {
                    1, capacity - 1, capacity, capacity + 1, capacity + 4, 2 * capacity, LONGEST};
                for (size_t p = 0; p < sizeof places / sizeof *places; p++)
                    for (size_t l = 0; l < sizeof lens / sizeof *lens; l++)
                        if (lens[l] && lens[l] <= LONGEST &&
                            !comes_whole_or_is_counted(way, places[p], capacity, lens[l])) {
                            printf("# %s: capacity %u at %#llx, frame of %u\n", way->name, capacity,
                                   (unsigned long long)places[p], lens[l]);
                            check(0, "whole or counted", __LINE__);
                        }
            }
            if (way->others && !leaves_the_next_page_unchanged(way)) {
                printf("# %s\n", way->name);
                check(0, "nothing after the buffer is written where other threads read", __LINE__);
            }
            /* Too many for one call: the guest asks again, and receives the frame after them. */
            for (unsigned i = 0; i < 70; i++)
                comes(way, 61);
            comes(way, 60);
            HOLDS(way->take(MIDDLE, 60).ret == HVT_R_AGAIN);
            const struct answer answer = way->take(MIDDLE, 60);
            HOLDS(answer.ret == HVT_R_OK && answer.len == 60);
            tear_down();
        }
    return claims_end();
}
