/*
 * The cost of a frame through the network ring and its worker, and through a hypercall handler. It measures
 * the host's side of both, on a TAP, without a guest and without the exit or jump of a guest. This thread
 * acts as the guest. A ring is worth its second processor if an exit costs more than the difference.
 *
 *     tools/with_net -- build/tests/native/ring_cost ROUNDS
 *
 *     tx SIZE      writes frames, until all are sent
 *     rx SIZE      reads frames that wait in the queue
 *     echo SIZE    reads frames and writes them back
 *     asleep       one read per millisecond: the ring's worker must be woken for each
 *
 * A round is each of these for both sides, in changing order. It prints medians in nanoseconds per frame, and
 * the median and the quartiles of the rounds' ratios, ring ÷ call.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ring.h"
#include "runner.h"

#define M          0x1000000u
#define ARGS       0x300000u
#define FRAME      0x200000u
#define COPIES     0x400000u
#define COPY_COUNT 256u
#define COPY_BYTES 2048u
#define FRAMES     10000
#define READS      100
#define ROUNDS_MAX 1000

static const struct mode {
    const char *name;
    uint32_t size;
    bool in, out, asleep;
} modes[] = {
    {"tx 64", 64, false, true, false},  {"tx 1514", 1514, false, true, false},
    {"rx 64", 64, true, false, false},  {"rx 1514", 1514, true, false, false},
    {"echo 64", 64, true, true, false}, {"asleep", 64, true, false, true},
};
#define MODES (sizeof modes / sizeof *modes)

static struct vm vm;
static struct hvt_net_ring *ring;
static uint32_t com_head;
static int sender;
static struct sockaddr_ll to_guest = {.sll_family = AF_PACKET, .sll_halen = 6};
static uint8_t frame[1514] = {2, [12] = 0x88, 0xb5};
static double taken_ns[MODES][2][ROUNDS_MAX];

static void must(bool holds, const char *what)
{
    if (!holds) {
        perror(what);
        exit(1);
    }
}

static void post(uint32_t operation, gpa_t data, uint32_t len)
{
    const uint32_t tail = ring->ent_tail;
    ring->entries[tail % HVT_RING_ENTRIES] = (struct hvt_ring_entry){operation, 1, data, len, tail, 0};
    __atomic_store_n(&ring->ent_tail, tail + 1, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (__atomic_load_n(&ring->needs_kick, __ATOMIC_RELAXED))
        must(ring_worker_wake(&vm), "worker"); /* only the worker serves the ring: it is measured here */
}

static uint32_t outstanding(void)
{
    return ring->ent_tail - __atomic_load_n(&ring->ent_head, __ATOMIC_ACQUIRE);
}

static void transmit(bool by_ring, uint32_t size)
{
    if (by_ring) {
        while (outstanding() >= COPY_COUNT)
            __builtin_ia32_pause();
        const gpa_t copy = COPIES + (gpa_t)(ring->ent_tail % COPY_COUNT) * COPY_BYTES;
        memcpy(vm.memory.hva + copy, frame, size);
        post(HVT_RING_WRITE, copy, size);
        return;
    }
    const struct hvt_net_write call = {1, FRAME, size, 0};
    memcpy(vm.memory.hva + ARGS, &call, sizeof call);
    (void)hypercall(&vm, HVT_HYPERCALL_NET_WRITE, ARGS);
}

static bool receive(bool by_ring)
{
    if (by_ring) {
        post(HVT_RING_READ, FRAME, sizeof frame);
        while (__atomic_load_n(&ring->com_tail, __ATOMIC_ACQUIRE) == com_head)
            __builtin_ia32_pause();
        return ring->commits[com_head++ % HVT_RING_ENTRIES].ret == HVT_R_OK;
    }
    struct hvt_net_read call = {1, FRAME, sizeof frame, 0};
    memcpy(vm.memory.hva + ARGS, &call, sizeof call);
    (void)hypercall(&vm, HVT_HYPERCALL_NET_READ, ARGS);
    memcpy(&call, vm.memory.hva + ARGS, sizeof call);
    return call.ret == HVT_R_OK;
}

static void fill(uint32_t size, int count)
{
    while (count--)
        must(sendto(sender, frame, size, 0, (void *)&to_guest, sizeof to_guest) == (ssize_t)size, "send");
}

static double measure(const struct mode *mode, bool by_ring)
{
    while (receive(false))
        ;
    const int count = mode->asleep ? READS : FRAMES;
    if (mode->in && !mode->asleep)
        fill(mode->size, FRAMES);
    usleep(3000); /* until the worker is asleep again */
    uint64_t sum_ns = 0, begin_ns = monotonic_ns();
    for (int i = 0; i < count; i++) {
        if (mode->asleep) {
            fill(mode->size, 1);
            usleep(1000);
            begin_ns = monotonic_ns();
        }
        if (mode->in)
            must(receive(by_ring), "a frame was lost");
        if (mode->out)
            transmit(by_ring, mode->size);
        if (mode->asleep)
            sum_ns += monotonic_ns() - begin_ns;
    }
    while (by_ring && outstanding())
        __builtin_ia32_pause();
    if (!mode->asleep)
        sum_ns = monotonic_ns() - begin_ns;
    return (double)sum_ns / count;
}

static void set_up(void)
{
    struct ifreq request = {.ifr_name = "tapring", .ifr_flags = IFF_TAP | IFF_NO_PI};
    const int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK), one = 1, buffer_bytes = 1 << 28;
    must(fd >= 0 && ioctl(fd, TUNSETIFF, &request) == 0, "/dev/net/tun");
    must(system("ip link set tapring txqueuelen 20000 up") == 0, "ip");
    sender = socket(AF_PACKET, SOCK_RAW, 0);
    to_guest.sll_ifindex = (int)if_nametoindex("tapring");
    (void)setsockopt(sender, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof one);
    (void)setsockopt(sender, SOL_SOCKET, SO_SNDBUFFORCE, &buffer_bytes, sizeof buffer_bytes);
    must(vm_init(&vm) == 0, "vm");
    vm.memory.hva = mmap(NULL, M + HVT_RING_AREA_BYTES, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    must(vm.memory.hva != MAP_FAILED, "memory");
    vm.memory.bytes = M;
    vm.devices[1] = (struct vm_device){.type = MFT_NET_BASIC, .fd = fd};
    vm.device_end = 2;
    vm.count_of[MFT_NET_BASIC] = 1;
    ring = (struct hvt_net_ring *)(void *)(vm.memory.hva + M);
    ring_offer(&vm, ring, RING_WORKER);
    memcpy(vm.memory.hva + FRAME, frame, sizeof frame);
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    const int rounds = argc > 1 ? atoi(argv[1]) : 21;
    must(rounds > 0 && rounds < ROUNDS_MAX, "usage: ring_cost ROUNDS");
    set_up();
    for (int round = 0; round <= rounds; round++) /* the first round is a warm-up */
        for (size_t mode = 0; mode < MODES; mode++)
            for (int turn = 0; turn < 2; turn++) {
                const bool by_ring = (turn + round) % 2;
                const double ns = measure(&modes[mode], by_ring);
                if (round)
                    taken_ns[mode][by_ring][round - 1] = ns;
            }
    ring_worker_stop(&vm);
    for (size_t mode = 0; mode < MODES; mode++) {
        static double ratios[ROUNDS_MAX];
        double (*ns)[ROUNDS_MAX] = taken_ns[mode];
        for (int i = 0; i < rounds; i++)
            ratios[i] = ns[true][i] / ns[false][i];
        double *sorted[] = {ns[false], ns[true], ratios};
        for (size_t i = 0; i < 3; i++)
            qsort(sorted[i], (size_t)rounds, sizeof(double), ascending);
        printf("%-8s call %7.0f ring %7.0f ns, ratio %.2f (%.2f .. %.2f)\n", modes[mode].name,
               ns[false][rounds / 2], ns[true][rounds / 2], ratios[rounds / 2], ratios[rounds / 4],
               ratios[rounds * 3 / 4]);
    }
    return 0;
}
