/*
 * The network ring under libFuzzer: the input is what a guest writes into it.
 *
 *   input: u16 records, each followed by the bytes that its kind needs
 *          kind 0: ent_tail = u32          kind 1: entry u16 = 24 bytes        kind 2: serve
 *          kind 7: serve like the worker, which sends later
 *          kind 3: any u32 at u16 * 4      kind 4: a frame comes from the wire
 *          kind 5: 64 bytes to u16 * 64 of memory, and from now on TCP segments are joined and cut
 *          kind 6: a net header and up to 120 bytes of a frame of u16 bytes come from the wire
 *
 * Whatever the ring contains, a call ends, serves at most HVT_RING_ENTRIES, uses only its own
 * indices, and does not change what the guest may not write: the low megabyte, the text, and the
 * pages around memory (which have no rights).
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../native/devices.h"
#include "must.h"
#include "ring.h"
#include "runner.h"

#define M         0x200000u
#define A         (M + HVT_RING_AREA_BYTES)
#define TEXT      0x100000u
#define TEXT_END  0x104000u
#define SERVE_MAX 64

static struct vm vm;
static struct hvt_net_ring *ring;
static int wire;

static void set_up(void)
{
    int net[2];
    memset(&vm, 0, sizeof vm);
    MUST(vm_init(&vm) == 0);
    MUST(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, net) == 0);
    wire = net[1];
    uint8_t *mapping = mmap(NULL, A + 0x20000, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(mapping != MAP_FAILED && mprotect(mapping + 0x10000, A, PROT_READ | PROT_WRITE) == 0);
    vm.memory.hva = mapping + 0x10000;
    vm.memory.bytes = M;
    vm.memory.ranges[0] = (struct guest_range){TEXT, TEXT_END, SEGMENT_EXEC};
    vm.memory.range_count = 1;
    guest_memory_ranges_set(&vm.memory);
    vm.devices[1] = net_on(net[0], (struct net_device){.is_socket = true});
    vm.device_end = 2;
    vm.count_of[MFT_NET_BASIC] = 1;
    memset(vm.memory.hva, 0x11, TEXT_END);
    ring = (struct hvt_net_ring *)(void *)(vm.memory.hva + M);
    sigset_t saved;
    vm_enter(&vm, &saved);
}

static void check_untouched(void)
{
    static uint8_t expected[TEXT_END];
    if (!expected[0])
        memset(expected, 0x11, sizeof expected);
    MUST(memcmp(vm.memory.hva, expected, sizeof expected) == 0);
}

static bool take(const uint8_t **data, size_t *size, void *to, size_t len)
{
    if (*size < len)
        return false;
    memcpy(to, *data, len);
    *data += len;
    *size -= len;
    return true;
}

static void serve(int32_t (*ring_serves)(struct vm *))
{
    uint32_t head = net_vm(&vm)->ring.ent_head, commits = net_vm(&vm)->ring.com_tail,
             posted = ring->ent_tail - head;
    uint64_t reads = 0;
    for (uint32_t i = 0; i < posted && i < HVT_RING_ENTRIES; i++)
        reads += ring->entries[(head + i) % HVT_RING_ENTRIES].operation == HVT_RING_READ;
    int32_t served = ring_serves(&vm);
    MUST(served >= -1 && served <= HVT_RING_ENTRIES && net_vm(&vm)->ring.waiting < RING_WAITING_MAX);
    if (served < 0) {
        MUST(exit_stopped(&vm) == EXIT && vm.shared->event.kind == EVENT_BAD_ACCESS);
        MUST(net_vm(&vm)->ring.com_tail - commits <= reads);
        atomic_store(&vm.has_fault, false);
        return;
    }
    MUST((uint32_t)served == (posted < HVT_RING_ENTRIES ? posted : HVT_RING_ENTRIES));
    MUST(net_vm(&vm)->ring.ent_head - head == (uint32_t)served &&
         (!served || ring->ent_head == net_vm(&vm)->ring.ent_head));
    commits = net_vm(&vm)->ring.com_tail - commits;
    MUST(commits <= reads && (!commits || ring->com_tail == net_vm(&vm)->ring.com_tail));
}

static void write_memory(const uint8_t **data, size_t *size)
{
    uint16_t at;
    net_of(&vm.devices[1])->has_header = net_of(&vm.devices[1])->segments = true;
    if (take(data, size, &at, sizeof at))
        (void)take(data, size, vm.memory.hva + TEXT_END + at * 64u % (M - TEXT_END), 64);
}

static void large_frame(const uint8_t **data, size_t *size)
{
    static uint8_t frame[10 + 4096];
    uint16_t len;
    if (take(data, size, &len, sizeof len) && take(data, size, frame, *size < 130 ? *size : 130))
        (void)send(wire, frame, len % sizeof frame, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!vm.memory.hva)
        set_up();
    memset(ring, 0, sizeof *ring);
    net_vm(&vm)->ring = (struct net_ring){0};
    net_of(&vm.devices[1])->has_header = net_of(&vm.devices[1])->segments = false;
    ring_offer(&vm, ring, RING_INLINE);
    uint8_t drop[2048];
    uint16_t kind, at;
    for (int serves = 0; serves < SERVE_MAX && take(&data, &size, &kind, sizeof kind);) {
        if (kind % 8 == 0) {
            (void)take(&data, &size, &ring->ent_tail, 4);
        } else if (kind % 8 == 1) {
            if (take(&data, &size, &at, sizeof at))
                (void)take(&data, &size, &ring->entries[at % HVT_RING_ENTRIES], 24);
        } else if (kind % 8 == 2) {
            serve(ring_serve);
            serves++;
        } else if (kind % 8 == 3) {
            if (take(&data, &size, &at, sizeof at))
                (void)take(&data, &size, (uint32_t *)(void *)ring + at % (sizeof *ring / 4), 4);
        } else if (kind % 8 == 4) {
            (void)send(wire, drop, 60, 0);
        } else if (kind % 8 == 5) {
            write_memory(&data, &size);
        } else if (kind % 8 == 6) {
            large_frame(&data, &size);
        } else {
            serve(ring_serve_busy);
            serves++;
        }
        while (recv(wire, drop, sizeof drop, 0) > 0)
            ;
    }
    while (recv(vm.devices[1].fd, drop, sizeof drop, 0) > 0)
        ;
    check_untouched();
    return 0;
}

#ifdef FUZZ_STANDALONE
int main(void)
{
    static const uint8_t start[] = {1, 0, 0,  0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0x10, 0, 0, 0,
                                    0, 0, 60, 0, 0, 0, 7, 0, 0, 0, 0, 0, 1, 0, 0,    0, 2, 0};
    return LLVMFuzzerTestOneInput(start, sizeof start);
}
#endif
