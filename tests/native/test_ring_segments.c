/*
 * Segments that a guest posts to the ring, and a wire that takes no frame longer than some limit.
 * Segments that are refused as one large frame are sent one by one. Prints one TAP line for each
 * check and exits with 1 if one fails.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "devices.h"
#include "holds.h"
#include "net_frame.h"
#include "ring.h"
#include "runner.h"
#include "tcp_frames.h"

#define M         0x400000u
#define A         (M + HVT_RING_AREA_BYTES)
#define BUFFERS   0x200000u
#define NET       1
#define HEADER    sizeof(struct net_header)
#define SEGMENT   1448u
#define LAST      100u
#define WIRE_MANY (1 << 20) /* of SO_SNDBUF: a large frame fits */
#define WIRE_FEW  1         /* the kernel's minimum, 4.5 KiB: five segments together do not fit */

static struct vm vm;
static struct hvt_net_ring *ring;
static int wire;

static void set_up(int send_buffer)
{
    int net[2];
    memset(&vm, 0, sizeof vm);
    if (vm_init(&vm) < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, net) < 0 ||
        setsockopt(net[0], SOL_SOCKET, SO_SNDBUF, &send_buffer, sizeof send_buffer) < 0)
        abort();
    vm.memory.hva = mmap(NULL, A, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (vm.memory.hva == MAP_FAILED)
        abort();
    vm.memory.bytes = M;
    vm.devices[NET] = net_on(
        net[0], (struct net_device){.has_header = true, .segments = true, .offload = TENDER_OFFLOAD_CSUM});
    vm.device_end = NET + 1;
    vm.count_of[MFT_NET_BASIC] = 1;
    wire = net[1];
    ring = (struct hvt_net_ring *)(void *)(vm.memory.hva + M);
    ring_offer(&vm, ring, RING_INLINE);
}

static void tear_down(void)
{
    close(vm.devices[NET].fd);
    close(wire);
    munmap(vm.memory.hva, A);
    vm.memory.hva = NULL;
    vm_release(&vm);
}

static void post(uint32_t index)
{
    const uint32_t tail = ring->ent_tail;
    const gpa_t at = BUFFERS + index * FRAME;
    memcpy(vm.memory.hva + at, frames[index], lens[index]);
    ring->entries[tail % HVT_RING_ENTRIES] = (struct hvt_ring_entry){
        .operation = HVT_RING_WRITE, .handle = NET, .data = at, .len = (uint32_t)lens[index]};
    __atomic_store_n(&ring->ent_tail, tail + 1, __ATOMIC_SEQ_CST);
}

/* Whether the next frame is the segment of this index as the guest made it, after a header of zeros. */
static bool comes_alone(uint32_t index)
{
    static const uint8_t none[HEADER];
    uint8_t got[HEADER + FRAME];
    return recv(wire, got, sizeof got, 0) == (ssize_t)(HEADER + lens[index]) &&
           memcmp(got, none, HEADER) == 0 && memcmp(got + HEADER, frames[index], lens[index]) == 0;
}

static bool comes_together(uint32_t count)
{
    uint8_t got[HEADER + TCP_LARGE_MAX];
    const size_t len = HEADER + HEAD + (count - 1) * SEGMENT + LAST;
    return recv(wire, got, sizeof got, 0) == (ssize_t)len;
}

static bool nothing_comes(void)
{
    uint8_t byte;
    return recv(wire, &byte, 1, 0) < 0;
}

static bool counted(uint64_t packets, uint64_t drops)
{
    const struct vm_counters *counters = &vm.shared->ring_counters;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < packets; i++)
        bytes += lens[i];
    return counters->net_tx_packets == packets && counters->net_tx_bytes == bytes &&
           counters->net_tx_drops == drops;
}

int main(void)
{
    static const uint32_t counts[] = {5, 20, TCP_JOINED_MAX - 4};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        const uint32_t count = counts[i];
        make_stretch(count, SEGMENT, LAST, ACK | PSH);

        set_up(WIRE_MANY);
        for (uint32_t k = 0; k < count; k++)
            post(k);
        HOLDS(ring_serve(&vm) == (int32_t)count && ring->ent_head == count);
        HOLDS(comes_together(count) && nothing_comes() && counted(count, 0));
        tear_down();

        /* The first segments are sent. Those that find the queue full are dropped and counted one
         * by one. */
        set_up(WIRE_FEW);
        for (uint32_t k = 0; k < count; k++)
            post(k);
        HOLDS(ring_serve(&vm) == (int32_t)count && ring->ent_head == count);
        uint32_t taken = 0;
        while (taken < count && comes_alone(taken))
            taken++;
        HOLDS(taken > 0 && nothing_comes() && counted(taken, count - taken));
        tear_down();
    }

    /* The wire is gone: every segment counts as a dropped frame. */
    make_stretch(5, SEGMENT, LAST, ACK | PSH);
    set_up(WIRE_MANY);
    close(vm.devices[NET].fd);
    vm.devices[NET].fd = -1;
    for (uint32_t k = 0; k < 5; k++)
        post(k);
    HOLDS(ring_serve(&vm) == 5 && ring->ent_head == 5 && counted(0, 5));

    /* An entry that the guest posted after the segments is served as usual. */
    ring->entries[5] = (struct hvt_ring_entry){
        .operation = HVT_RING_READ, .handle = NET, .len = 60, .data = BUFFERS, .id = 9};
    __atomic_store_n(&ring->ent_tail, 6, __ATOMIC_SEQ_CST);
    HOLDS(ring_serve(&vm) == 1 && ring->com_tail == 1 && ring->commits[0].id == 9);
    tear_down();
    return claims_end();
}
