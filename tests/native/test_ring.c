/*
 * The network ring without KVM and without a guest: this test plays the guest, and writes every
 * false value that a guest can write. Around its memory are pages without rights, so an access
 * outside raises SIGSEGV. Prints one TAP line for each check and exits with 1 if one fails.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kvm.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "device.h"
#include "devices.h"
#include "holds.h"
#include "net_frame.h"
#include "ring.h"
#include "run_kvm.h"
#include "runner.h"

#define M       0x400000u
#define A       (M + HVT_RING_AREA_BYTES)
#define TEXT    0x100000u
#define BUFFER  0x210000u
#define NET     1
#define DISK    2
#define LIMIT_S 30u

static struct vm vm;
static struct hvt_net_ring *ring;
static uint8_t *mapping;
static int wire; /* the other end of the network */

static void set_up(uint32_t mode)
{
    int net[2];
    memset(&vm, 0, sizeof vm);
    if (vm_init(&vm) < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, net) < 0)
        abort();
    mapping = mmap(NULL, A + 0x20000, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED || mprotect(mapping + 0x10000, A, PROT_READ | PROT_WRITE) < 0)
        abort();
    vm.memory.hva = mapping + 0x10000;
    vm.memory.bytes = M;
    vm.memory.ranges[0] = (struct guest_range){TEXT, TEXT + 0x1000, SEGMENT_EXEC};
    vm.memory.range_count = 1;
    vm.devices[NET] = net_on(net[0], (struct net_device){.is_socket = true});
    vm.devices[DISK] = disk_on(-1, (struct disk){0});
    vm.device_end = DISK + 1;
    vm.count_of[MFT_NET_BASIC] = 1;
    wire = net[1];
    ring = (struct hvt_net_ring *)(void *)(vm.memory.hva + M);
    ring_offer(&vm, ring, mode);
}

static void tear_down(void)
{
    ring_worker_stop(&vm);
    close(vm.devices[NET].fd);
    close(wire);
    munmap(mapping, A + 0x20000);
    vm.memory.hva = NULL;
    vm_release(&vm);
}

/* Posts an entry in the slot of the guest's tail, which moves on. */
static void post(uint32_t operation, uint32_t handle, gpa_t data, uint32_t len, uint32_t id)
{
    uint32_t tail = ring->ent_tail;
    ring->entries[tail % HVT_RING_ENTRIES] = (struct hvt_ring_entry){operation, handle, data, len, id, 0};
    __atomic_store_n(&ring->ent_tail, tail + 1, __ATOMIC_SEQ_CST);
}

static struct hvt_ring_commit commit(uint32_t index)
{
    return ring->commits[index % HVT_RING_ENTRIES];
}

/* Returns the first byte of the next frame on the wire, or -1 if there is none. */
static int received(void)
{
    uint8_t frame[2048];
    ssize_t got = recv(wire, frame, sizeof frame, 0);
    return got > 0 ? frame[0] : -1;
}

static void test_what_is_offered(void)
{
    HOLDS(ring->needs_kick == 1);
    HOLDS(ring_posted(&vm) == 0 && ring_serve(&vm) == 0);
    HOLDS(ring->ent_head == 0 && ring->com_tail == 0);
}

static void test_writes(void)
{
    for (uint32_t i = 0; i < 5; i++) {
        *(vm.memory.hva + BUFFER + i * 64) = (uint8_t)(10 + i);
        post(HVT_RING_WRITE, NET, BUFFER + i * 64, 60, i);
    }
    HOLDS(ring_posted(&vm) == 5);
    HOLDS(ring_serve(&vm) == 5 && ring->ent_head == 5 && ring->com_tail == 0);
    for (int i = 0; i < 5; i++)
        HOLDS(received() == 10 + i);
    HOLDS(received() == -1);
    HOLDS(vm.shared->ring_counters.net_tx_packets == 5 && vm.shared->ring_counters.net_tx_bytes == 300);
    HOLDS(vm.shared->counters.net_tx_packets == 0); /* those belong to the other thread */
}

static void test_reads(void)
{
    post(HVT_RING_READ, NET, BUFFER, 100, 7);
    HOLDS(send(wire, "frame", 5, 0) == 5);
    post(HVT_RING_READ, NET, BUFFER, 100, 8);
    HOLDS(ring_serve(&vm) == 2 && ring->com_tail == 2);
    HOLDS(commit(0).id == 7 && commit(0).ret == HVT_R_OK && commit(0).len == 5);
    HOLDS(commit(1).id == 8 && commit(1).ret == HVT_R_AGAIN && commit(1).len == 0);
    HOLDS(memcmp(vm.memory.hva + BUFFER, "frame", 5) == 0);
    post(HVT_RING_READ, NET, M, 0, 9); /* an empty buffer may end where memory ends */
    HOLDS(ring_serve(&vm) == 1 && commit(2).ret == HVT_R_AGAIN);
    close(wire);
    post(HVT_RING_READ, NET, BUFFER, 100, 10);
    HOLDS(ring_serve(&vm) == 1 && commit(3).ret == HVT_R_AGAIN && net_of(&vm.devices[NET])->gone);
    post(HVT_RING_WRITE, NET, BUFFER, 60, 11);
    HOLDS(ring_serve(&vm) == 1 && vm.shared->ring_counters.net_tx_drops == 1);
    wire = -1;
}

static void test_what_is_skipped(void)
{
    static const uint32_t handles[] = {0, DISK, 3, 63, 64, 0x10001, UINT32_MAX};
    static const uint32_t operations[] = {0, 3, 0x101, UINT32_MAX};
    uint32_t count = 0;
    for (size_t i = 0; i < sizeof handles / sizeof *handles; i++, count++)
        post(HVT_RING_WRITE, handles[i], UINT64_MAX, UINT32_MAX, 0); /* the handle is checked first */
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++, count++)
        post(operations[i], NET, UINT64_MAX, UINT32_MAX, 0);
    post(HVT_RING_WRITE, NET, BUFFER, 65554, 0); /* no device has such a large frame */
    HOLDS(ring_serve(&vm) == (int32_t)count + 1 && ring->com_tail == 0 && received() == -1);
    HOLDS(vm.shared->ring_counters.net_tx_drops == 0);
    for (size_t i = 0; i < sizeof handles / sizeof *handles; i++) {
        post(HVT_RING_READ, handles[i], UINT64_MAX, UINT32_MAX, (uint32_t)i);
        HOLDS(ring_serve(&vm) == 1 && commit((uint32_t)i).ret == HVT_R_EINVAL && commit((uint32_t)i).id == i);
    }
}

static bool breaks(uint32_t operation, gpa_t data, uint32_t len)
{
    uint32_t head = ring->ent_head;
    vm.shared->event = (struct vm_event){.kind = EVENT_HALT, .status = 3, .cookie_valid = 1};
    post(operation, NET, data, len, 0);
    post(HVT_RING_WRITE, NET, BUFFER, 60, 0);
    bool broken = ring_serve(&vm) == -1 && ring->ent_head == head && received() == -1;
    (void)exit_stopped(&vm);
    const struct vm_event *event = &vm.shared->event;
    broken =
        broken && event->kind == EVENT_BAD_ACCESS && event->gpa == data && event->len == len &&
        event->number == (operation == HVT_RING_READ ? HVT_HYPERCALL_NET_READ : HVT_HYPERCALL_NET_WRITE) &&
        event->cookie_valid == 0;
    atomic_store(&vm.has_fault, false);
    ring->ent_tail = head;
    return broken;
}

static void test_addresses(void)
{
    static const gpa_t bad[] = {
        0, 0xffff, M - 59, M, M + 4096, A, 1ull << 32, (1ull << 32) + BUFFER, INT64_MAX, UINT64_MAX - 30,
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        HOLDS(breaks(HVT_RING_WRITE, bad[i], 60));
        HOLDS(breaks(HVT_RING_READ, bad[i], 60));
    }
    HOLDS(breaks(HVT_RING_READ, TEXT, 60));
    HOLDS(breaks(HVT_RING_READ, HVT_BOOT_INFO_GPA, 60));
    HOLDS(breaks(HVT_RING_READ, BUFFER, UINT32_MAX));
    post(HVT_RING_WRITE, NET, TEXT, 60, 0);
    post(HVT_RING_WRITE, NET, M - 60, 60, 0);
    HOLDS(ring_serve(&vm) == 2);
}

static void test_false_tails(void)
{
    static const uint32_t tails[] = {1025, 0x80000000, 0xfffffc00, UINT32_MAX, 0};
    for (size_t i = 0; i < sizeof tails / sizeof *tails; i++) {
        uint32_t head = net_vm(&vm)->ring.ent_head;
        ring->ent_tail = head + tails[i];
        int32_t expected = tails[i] ? HVT_RING_ENTRIES : 0; /* empty entries, each of which is skipped */
        HOLDS(ring_serve(&vm) == expected);
        HOLDS(ring->ent_head == head + (uint32_t)expected);
    }
    ring->ent_tail = net_vm(&vm)->ring.ent_head - 1; /* backwards */
    HOLDS(ring_serve(&vm) == HVT_RING_ENTRIES);
    ring->ent_tail = net_vm(&vm)->ring.ent_head;
    HOLDS(ring_serve(&vm) == 0); /* and it goes on normally */
    post(HVT_RING_READ, 0, 0, 0, 5);
    HOLDS(ring_serve(&vm) == 1 && ring->com_tail == 1 && commit(0).id == 5);
}

static void test_our_indices_overwritten(void)
{
    ring->ent_head = 0xdeadbeef;
    ring->com_tail = 0xdeadbeef;
    ring->needs_kick = 0xdeadbeef;
    ring->com_head = 0xdeadbeef;
    post(HVT_RING_READ, 0, 0, 0, 6);
    HOLDS(ring_serve(&vm) == 1 && ring->ent_head == 1 && ring->com_tail == 1 && commit(0).id == 6);
}

static void test_indices_that_wrap(void)
{
    net_vm(&vm)->ring.ent_head = ring->ent_tail = ring->ent_head = UINT32_MAX - 1;
    net_vm(&vm)->ring.com_tail = ring->com_tail = UINT32_MAX;
    for (uint32_t i = 0; i < 4; i++)
        post(HVT_RING_READ, 0, 0, 0, 20 + i);
    HOLDS(ring_posted(&vm) == 2);
    HOLDS(ring_serve(&vm) == 4 && ring->ent_head == 2 && ring->com_tail == 3);
    for (uint32_t i = 0; i < 4; i++)
        HOLDS(commit(UINT32_MAX + i).id == 20 + i);
}

/* A guest that changes entries while they are served: one of the values counts, never a mixture of
 * checked values. */
static atomic_bool scribble;
static void *scribbler(void *unused)
{
    (void)unused;
    for (uint32_t i = 0; atomic_load(&scribble); i++) {
        struct hvt_ring_entry *entry = &ring->entries[i % 16];
        __atomic_store_n(&entry->len, i % 3 ? 60 : UINT32_MAX, __ATOMIC_RELAXED);
        __atomic_store_n(&entry->data, i % 5 ? BUFFER : (gpa_t)A - i % 64, __ATOMIC_RELAXED);
        __atomic_store_n(&entry->handle, i % 4, __ATOMIC_RELAXED);
        __atomic_store_n(&ring->ent_tail, i * 7, __ATOMIC_RELAXED);
    }
    return NULL;
}

static void test_entries_that_change(void)
{
    pthread_t thread;
    for (uint32_t i = 0; i < HVT_RING_ENTRIES; i++)
        ring->entries[i] = (struct hvt_ring_entry){1 + i % 2, NET, BUFFER, 60, i, 0};
    atomic_store(&scribble, true);
    if (pthread_create(&thread, NULL, scribbler, NULL) != 0)
        abort();
    bool sound = true;
    for (int i = 0; i < 300; i++) {
        if (ring_serve(&vm) < 0) {
            const struct vm_event *fault = &vm.fault; /* the range that it names is really bad */
            sound =
                sound && fault->kind == EVENT_BAD_ACCESS && (fault->gpa > M || fault->len > M - fault->gpa);
            atomic_store(&vm.has_fault, false);
        }
        while (received() >= 0)
            ;
    }
    HOLDS(sound);
    atomic_store(&scribble, false);
    pthread_join(thread, NULL);
}

static void test_kicks_as_exits(void)
{
    static union {
        struct kvm_run run;
        uint8_t page[8192];
    } page;
    struct kvm_run *run = &page.run;
    run->exit_reason = KVM_EXIT_IO;
    run->io.direction = KVM_EXIT_IO_OUT;
    run->io.size = 4;
    run->io.count = 1;
    run->io.port = HVT_PORT_NET_KICK;
    run->io.data_offset = 4096;
    post(HVT_RING_READ, 0, 0, 0, 1);
    HOLDS(kvm_exit_handle(&vm, run) == CONTINUE && ring->com_tail == 1);
    HOLDS(vm.shared->counters.net_ring_kicks == 1);
    run->io.size = 2;
    HOLDS(kvm_exit_handle(&vm, run) == EXIT && vm.shared->event.kind == EVENT_BAD_PORT);
    run->io.size = 4;
    run->io.direction = KVM_EXIT_IO_IN;
    HOLDS(kvm_exit_handle(&vm, run) == EXIT && vm.shared->event.kind == EVENT_BAD_PORT);
    run->io.direction = KVM_EXIT_IO_OUT;
    struct rlimit before, none;
    (void)getrlimit(RLIMIT_NOFILE, &before);
    none = (struct rlimit){0, before.rlim_max};
    net_vm(&vm)->ring.mode = RING_WORKER; /* but there is no descriptor for the worker */
    (void)setrlimit(RLIMIT_NOFILE, &none);
    HOLDS(kvm_exit_handle(&vm, run) == CONTINUE);
    (void)setrlimit(RLIMIT_NOFILE, &before);
    HOLDS(!net_vm(&vm)->ring.has_worker && net_vm(&vm)->ring.mode == RING_INLINE && ring->needs_kick == 1);
    post(HVT_RING_READ, 0, 0, 0, 2);
    HOLDS(kvm_exit_handle(&vm, run) == CONTINUE && ring->com_tail == 2);
    post(HVT_RING_READ, NET, M, 1, 3);
    HOLDS(kvm_exit_handle(&vm, run) == EXIT && vm.shared->event.kind == EVENT_BAD_ACCESS);
}

/* ---- with a worker */

static bool within_limit(bool (*reached)(void))
{
    uint64_t end = monotonic_ns() + LIMIT_S * 1000000000ull;
    while (!reached())
        if (monotonic_ns() > end)
            return false;
        else
            sched_yield();
    return true;
}

static bool all_is_served(void)
{
    return __atomic_load_n(&ring->ent_head, __ATOMIC_ACQUIRE) == ring->ent_tail;
}

static bool it_sleeps(void)
{
    return __atomic_load_n(&ring->needs_kick, __ATOMIC_SEQ_CST);
}

static bool it_gave_up(void)
{
    return atomic_load(&vm.stop_requested);
}

/* As a guest does it. */
static void kick_if_wanted(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (it_sleeps())
        (void)ring_kicked(&vm);
}

static void test_a_worker_serves_sleeps_and_is_woken(void)
{
    HOLDS(!net_vm(&vm)->ring.woken && ring_worker_wake(&vm) && net_vm(&vm)->ring.has_worker &&
          net_vm(&vm)->ring.woken);
    for (uint32_t i = 0; i < 3000; i++) {
        while (ring->ent_tail - __atomic_load_n(&ring->ent_head, __ATOMIC_ACQUIRE) >= HVT_RING_ENTRIES)
            sched_yield();
        post(HVT_RING_READ, 0, 0, 0, i);
        kick_if_wanted();
    }
    HOLDS(within_limit(all_is_served) && ring->com_tail == 3000 && commit(2999).id == 2999);
    for (uint32_t i = 3000; i < 3020; i++) { /* it sleeps or is about to: no other thread serves these */
        (void)within_limit(it_sleeps);
        post(HVT_RING_READ, 0, 0, 0, i);
        (void)ring_worker_wake(&vm);
        if (!within_limit(all_is_served))
            break;
    }
    HOLDS(ring->com_tail == 3020 && commit(3019).id == 3019);
    ring_worker_stop(&vm);
    HOLDS(!net_vm(&vm)->ring.has_worker && ring->needs_kick == 1);
    ring_worker_stop(&vm); /* a second stop does nothing */
    HOLDS(net_vm(&vm)->ring.woken);
    ring_offer(&vm, ring, RING_INLINE); /* for another guest */
    HOLDS(!net_vm(&vm)->ring.woken);
}

/* Whether any of `count` kicks, each `apart_ns` after the one before, wakes the worker. The clock
 * is an argument. */
static bool wakes(uint64_t *now_ns, uint32_t count, uint64_t apart_ns)
{
    bool woken = false;
    for (uint32_t i = 0; i < count; i++) {
        *now_ns += apart_ns;
        woken = ring_kicks_come_fast(&net_vm(&vm)->ring, *now_ns) || woken;
    }
    return woken;
}

static void test_the_limit_for_fast_kicks_follows_the_cost_of_a_kick(void)
{
    static const struct {
        uint64_t cost_ns, fast_ns, slow_ns;
    } machines[] = {
        {500, 19999, 20000},        /* never less than 20 us */
        {1250, 19999, 20000},       /* 16 times the cost */
        {2000, 31999, 32000},       /* bare metal */
        {20000, 319999, 320000},    /* nested virtualization */
        {120000, 1919999, 1920000}, /* emulated */
        {125000, 1999999, 2000000}, /* never more than 2 ms */
        {1000000, 1999999, 2000000},
    };
    for (size_t i = 0; i < sizeof machines / sizeof *machines; i++) {
        uint64_t now_ns = 1000000000;
        ring_offer(&vm, ring, RING_ADAPTIVE);
        HOLDS(!wakes(&now_ns, 1, 0)); /* there is no kick before the first */
        HOLDS(!wakes(&now_ns, 1, machines[i].cost_ns));
        HOLDS(!wakes(&now_ns, 100, machines[i].slow_ns));
        HOLDS(!wakes(&now_ns, 15, machines[i].fast_ns));
        HOLDS(!wakes(&now_ns, 1, machines[i].slow_ns)); /* the count starts again */
        HOLDS(!wakes(&now_ns, 15, machines[i].fast_ns) && wakes(&now_ns, 1, machines[i].fast_ns));
        HOLDS(!wakes(&now_ns, 15, machines[i].fast_ns) && wakes(&now_ns, 1, machines[i].fast_ns));
    }
    ring_offer(&vm, ring, RING_ADAPTIVE); /* for another guest: no cost is known */
    HOLDS(net_vm(&vm)->ring.kick_cost_ns == UINT64_MAX && net_vm(&vm)->ring.quick_kicks == 0);
}

static void test_a_kick_is_served_at_once_and_a_worker_woken_only_when_they_come_fast(void)
{
    net_vm(&vm)->ring.mode = RING_ADAPTIVE;
    net_vm(&vm)->ring.kick_cost_ns = 1; /* so that 25 us are slow */
    for (uint32_t i = 0; i < 200; i++) {
        uint64_t next_ns = monotonic_ns() + 25000;
        post(HVT_RING_READ, 0, 0, 0, i);
        (void)ring_kicked(&vm);
        if (ring->com_tail != i + 1)
            break;
        while (monotonic_ns() < next_ns)
            ;
    }
    HOLDS(ring->com_tail == 200 && !net_vm(&vm)->ring.has_worker);
    uint64_t end_ns = monotonic_ns() + LIMIT_S * 1000000000ull;
    while (!net_vm(&vm)->ring.has_worker && monotonic_ns() < end_ns)
        (void)ring_kicked(&vm);
    HOLDS(net_vm(&vm)->ring.has_worker);
    post(HVT_RING_READ, 0, 0, 0, 200);
    (void)ring_worker_wake(&vm);
    HOLDS(within_limit(all_is_served) && commit(200).id == 200);
    HOLDS(ring_kicked(&vm) == CONTINUE); /* without an entry */
}

static void test_a_worker_that_meets_a_bad_address_stops_the_run(void)
{
    post(HVT_RING_WRITE, NET, M, 1, 0);
    HOLDS(ring_worker_wake(&vm) && within_limit(it_gave_up));
    HOLDS(exit_interrupted(&vm) == EXIT && vm.shared->event.kind == EVENT_BAD_ACCESS &&
          vm.shared->event.gpa == M);
    ring_end(&vm);
    HOLDS(vm.shared->event.kind == EVENT_BAD_ACCESS && !net_vm(&vm)->ring.has_worker);
}

static void test_the_end_serves_what_is_left(void)
{
    HOLDS(ring_worker_wake(&vm) && within_limit(it_sleeps));
    post(HVT_RING_WRITE, NET, BUFFER, 60, 0); /* no kick */
    vm.shared->event = (struct vm_event){.kind = EVENT_HALT, .status = 4};
    ring_end(&vm);
    HOLDS(received() == 0 && vm.shared->event.kind == EVENT_HALT && vm.shared->event.status == 4);
    post(HVT_RING_WRITE, NET, M, 1, 0);
    ring_end(&vm); /* the entry was posted before the halt */
    HOLDS(vm.shared->event.kind == EVENT_BAD_ACCESS);
    vm.shared->event = (struct vm_event){.kind = EVENT_STOPPED};
    ring_end(&vm);
    HOLDS(vm.shared->event.kind == EVENT_STOPPED);
}

static void test_a_fork_has_no_worker_to_wait_for(void)
{
    HOLDS(ring_worker_wake(&vm));
    pid_t child = fork();
    if (child == 0) {
        alarm(LIMIT_S);
        ring_worker_stop(&vm);
        _exit(0);
    }
    int status = -1;
    HOLDS(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

static void test_workers_come_and_go_without_a_trace(void)
{
    int before = dup(wire);
    close(before);
    for (int i = 0; i < 200; i++) {
        if (!ring_worker_wake(&vm))
            abort();
        ring_worker_stop(&vm);
    }
    int after = dup(wire);
    HOLDS(before == after);
    close(after);
}

/* A run that ends by an exception does not stop its worker. A reset stops it: it would use the next
 * guest's memory. */
static void test_no_worker_outlives_a_reset(void)
{
    HOLDS(ring_worker_wake(&vm) && within_limit(it_sleeps));
    HOLDS(vm_reset(&vm) == 0);
    HOLDS(!net_vm(&vm)->ring.has_worker && ring->needs_kick == 1);
    post(HVT_RING_WRITE, NET, BUFFER, 60, 1); /* posted by the next guest, which has not kicked */
    HOLDS(ring_worker_wake(&vm) && within_limit(all_is_served) && received() >= 0);
}

static void test_which_guests_are_offered_a_ring(void)
{
    const gpa_t small = 0x400000;
    const uint64_t mib = 1 << 20;
    cpu_set_t all, one;
    sched_getaffinity(0, sizeof all, &all);
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE && !CPU_COUNT(&one); i++)
        if (CPU_ISSET(i, &all))
            CPU_SET(i, &one);
    const uint32_t here = CPU_COUNT(&all) < 2 ? RING_NONE : RING_ADAPTIVE;
    HOLDS(ring_mode_for(small, 32 * mib, RING_ADAPTIVE) == here);
    HOLDS(ring_mode_for(small, 30 * mib, RING_ADAPTIVE) == RING_NONE); /* this size counts the area, too */
    HOLDS(ring_mode_for(small, 8 * mib, RING_INLINE) == RING_INLINE);
    HOLDS(ring_mode_for(small, 8 * mib, RING_WORKER) == RING_WORKER);
    HOLDS(ring_mode_for(small, 7 * mib, RING_INLINE) == RING_NONE); /* less than 2 MiB after the bss */
    HOLDS(ring_mode_for(small, 32 * mib, RING_NONE) == RING_NONE);
    HOLDS(sched_setaffinity(0, sizeof one, &one) == 0);
    HOLDS(ring_mode_for(small, 32 * mib, RING_ADAPTIVE) == RING_NONE);
    HOLDS(ring_mode_for(small, 32 * mib, RING_WORKER) == RING_WORKER);
    HOLDS(sched_setaffinity(0, sizeof all, &all) == 0);
}

int main(void)
{
    static void (*const tests[])(void) = {
        test_which_guests_are_offered_a_ring,
        test_what_is_offered,
        test_writes,
        test_reads,
        test_what_is_skipped,
        test_addresses,
        test_false_tails,
        test_our_indices_overwritten,
        test_indices_that_wrap,
        test_entries_that_change,
        test_kicks_as_exits,
        test_a_worker_serves_sleeps_and_is_woken,
        test_the_limit_for_fast_kicks_follows_the_cost_of_a_kick,
        test_a_kick_is_served_at_once_and_a_worker_woken_only_when_they_come_fast,
        test_a_worker_that_meets_a_bad_address_stops_the_run,
        test_the_end_serves_what_is_left,
        test_a_fork_has_no_worker_to_wait_for,
        test_workers_come_and_go_without_a_trace,
        test_no_worker_outlives_a_reset,
    };
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        set_up(RING_INLINE);
        tests[i]();
        tear_down();
    }
    return claims_end();
}
