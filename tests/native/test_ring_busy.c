/*
 * What the worker sends later: frames that a guest writes while it reads frame after frame. The
 * guest sees no difference. Each frame leaves once, in order, with its content from when it was
 * posted, and at the latest when the guest pauses. This test plays the guest and the other end of
 * the network. Prints one TAP line for each check and exits with 1 if one fails.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "devices.h"
#include "holds.h"
#include "net_frame.h"
#include "ring.h"
#include "runner.h"

#define M       0x400000u
#define A       (M + HVT_RING_AREA_BYTES)
#define BUFFERS 0x200000u
#define FRAME   64u
#define NET     1
#define LIMIT_S 30u
#define WAITING 2048u /* bytes of a frame that may wait, ring.c */

static struct vm vm;
static struct hvt_net_ring *ring;
static int wire;

static void set_up(void)
{
    int net[2];
    memset(&vm, 0, sizeof vm);
    if (vm_init(&vm) < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, net) < 0)
        abort();
    vm.memory.hva = mmap(NULL, A, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (vm.memory.hva == MAP_FAILED)
        abort();
    vm.memory.bytes = M;
    vm.devices[NET] = net_on(net[0], (struct net_device){.is_socket = true});
    vm.device_end = NET + 1;
    vm.count_of[MFT_NET_BASIC] = 1;
    wire = net[1];
    ring = (struct hvt_net_ring *)(void *)(vm.memory.hva + M);
    ring_offer(&vm, ring, RING_INLINE);
}

static void tear_down(void)
{
    ring_worker_stop(&vm);
    close(vm.devices[NET].fd);
    close(wire);
    munmap(vm.memory.hva, A);
    vm.memory.hva = NULL;
    vm_release(&vm);
}

static void post_at(uint32_t operation, gpa_t data)
{
    const uint32_t tail = ring->ent_tail;
    ring->entries[tail % HVT_RING_ENTRIES] = (struct hvt_ring_entry){
        .operation = operation, .handle = NET, .data = data, .len = FRAME, .id = tail};
    __atomic_store_n(&ring->ent_tail, tail + 1, __ATOMIC_SEQ_CST);
}

/* Posts one entry per letter: R is a read, any other letter a write of a frame that begins with it. */
static void post(const char *letters)
{
    for (; *letters; letters++) {
        const gpa_t data = BUFFERS + ring->ent_tail % HVT_RING_ENTRIES * FRAME;
        vm.memory.hva[data] = (uint8_t)*letters;
        post_at(*letters == 'R' ? HVT_RING_READ : HVT_RING_WRITE, data);
    }
}

static void comes(uint32_t frames)
{
    const uint8_t frame[FRAME] = {'!'};
    for (; frames; frames--)
        HOLDS(send(wire, frame, sizeof frame, 0) == (ssize_t)sizeof frame);
}

/* Whether the frames on the wire begin with these letters, and no other frame is there. */
static bool were_sent(const char *letters)
{
    uint8_t frame[FRAME];
    for (; *letters; letters++)
        if (recv(wire, frame, sizeof frame, 0) != (ssize_t)sizeof frame || frame[0] != *letters)
            return false;
    return recv(wire, frame, sizeof frame, 0) < 0;
}

/* The commits that the guest has not taken yet, and takes here: + for a frame, - for none. */
static bool are_answered(const char *answers)
{
    for (; *answers; answers++, ring->com_head++) {
        const struct hvt_ring_commit *commit = &ring->commits[ring->com_head % HVT_RING_ENTRIES];
        if (ring->com_head == ring->com_tail || (*answers == '+') != (commit->ret == HVT_R_OK))
            return false;
    }
    return ring->com_head == ring->com_tail;
}

/* The result of each look at the ring, row by row. */
static const struct look {
    const char *what;
    uint32_t frames; /* that come before the look */
    const char *posted, *answers, *sent;
} looks[] = {
    {"writes without an earlier read are sent immediately", 0, "ab", "", "ab"},
    {"a read that finds none is answered", 0, "R", "-", ""},
    {"and writes after it are sent immediately", 0, "c", "", "c"},
    {"a read that finds a frame is answered", 3, "R", "+", ""},
    {"the next read is answered before the written frame is sent", 0, "dR", "+", ""},
    {"a written frame waits for the next read", 0, "e", "", ""},
    {"and that read is answered first", 0, "fR", "+", ""},
    {"the waiting ends with a read that finds none", 0, "gR", "-", "defg"},
    {"many entries in one look: each in its order", 1, "hRiRjR", "+--", "hij"},
    {"after that nothing waits", 1, "kRl", "+", "k"},
    {"no entry, and no change", 0, "", "", ""},
};

static void test_the_order(void)
{
    for (size_t i = 0; i < sizeof looks / sizeof *looks; i++) {
        const struct look *look = &looks[i];
        comes(look->frames);
        post(look->posted);
        HOLDS(ring_serve_busy(&vm) >= 0);
        const bool right = are_answered(look->answers) && were_sent(look->sent) &&
                           ring->ent_head == ring->ent_tail && ring->ent_head == net_vm(&vm)->ring.ent_head;
        check(right, look->what, __LINE__);
    }
    HOLDS(ring_serve(&vm) == 0 && were_sent("l")); /* a pause of the guest sends what waits */
    HOLDS(ring_serve(&vm) == 0 && ring_serve_busy(&vm) == 0 && were_sent(""));
}

static void test_a_limited_number_of_frames_waits(void)
{
    char sent[RING_WAITING_MAX + 1] = {0};
    comes(1);
    post("R");
    HOLDS(ring_serve_busy(&vm) == 1 && are_answered("+"));
    for (uint32_t i = 0; i < RING_WAITING_MAX - 1; i++) {
        HOLDS(were_sent(""));
        post("x");
        sent[i] = 'x';
        HOLDS(ring_serve_busy(&vm) > 0);
    }
    post("x");
    sent[RING_WAITING_MAX - 1] = 'x';
    HOLDS(ring_serve_busy(&vm) == 1 && were_sent(sent));
    post("y");
    HOLDS(ring_serve_busy(&vm) == 1 && were_sent("")); /* as far as the worker knows, the guest still reads */
}

/* The guest may use a buffer again as soon as the host's head is past its entry. */
static void test_a_frame_is_as_it_was_when_it_was_posted(void)
{
    comes(2);
    post("R");
    HOLDS(ring_serve_busy(&vm) == 1 && are_answered("+"));
    vm.memory.hva[BUFFERS] = 'a';
    post_at(HVT_RING_WRITE, BUFFERS);
    post_at(HVT_RING_READ, BUFFERS); /* into the same buffer */
    HOLDS(ring_serve_busy(&vm) == 2 && are_answered("+") && vm.memory.hva[BUFFERS] == '!');
    memset(vm.memory.hva + BUFFERS, '?', FRAME);
    post("R");
    HOLDS(ring_serve_busy(&vm) == 1 && are_answered("-") && were_sent("a"));
}

static void test_a_frame_that_is_too_large_to_wait_goes_in_its_order(void)
{
    static const uint32_t lens[] = {WAITING - 1, WAITING, WAITING + 1, 65553};
    for (size_t i = 0; i < sizeof lens / sizeof *lens; i++) {
        static uint8_t frame[70000];
        comes(1);
        post("RaR");
        ring->entries[(ring->ent_tail - 2) % HVT_RING_ENTRIES].len = lens[i];
        ring->ent_tail--; /* the second read comes later */
        HOLDS(ring_serve_busy(&vm) == 2 && are_answered("+"));
        post("b");
        HOLDS(ring_serve_busy(&vm) == 1);
        if (lens[i] > WAITING)
            HOLDS(recv(wire, frame, sizeof frame, 0) == (ssize_t)lens[i] && frame[0] == 'a');
        else
            HOLDS(were_sent(""));
        post("R");
        HOLDS(ring_serve_busy(&vm) == 1 && are_answered("-"));
        if (lens[i] <= WAITING)
            HOLDS(recv(wire, frame, sizeof frame, 0) == (ssize_t)lens[i] && frame[0] == 'a');
        HOLDS(were_sent("b"));
    }
}

static void (*on_yield)(void);
static uint32_t yields;

/* Replaces the C library's function, also for the core. */
int sched_yield(void)
{
    yields++;
    if (on_yield)
        on_yield();
    return (int)syscall(SYS_sched_yield);
}

/* The receiver runs, receives the answer, and sends again. */
static void ask_again(void)
{
    on_yield = NULL;
    HOLDS(were_sent("a"));
    comes(1);
}

static void test_the_receiver_may_run_before_a_read_finds_none(void)
{
    for (uint32_t allowed = 0; allowed < 2; allowed++) {
        net_vm(&vm)->ring.may_yield = allowed;
        yields = 0;
        comes(1);
        post("R");
        HOLDS(ring_serve_busy(&vm) == 1 && are_answered("+") && yields == 0);
        on_yield = ask_again;
        post("aR");
        HOLDS(ring_serve_busy(&vm) > 0 && are_answered(allowed ? "+" : "-"));
        HOLDS(allowed ? yields > 0 && yields < 10 : yields == 0 && were_sent("a"));
        on_yield = NULL;
        post("R");
        HOLDS(ring_serve_busy(&vm) == 1 && are_answered("-"));
        const uint32_t before = yields;
        post("R"); /* nothing was sent: no yield */
        HOLDS(ring_serve_busy(&vm) == 1 && are_answered("-") && yields == before);
    }
}

/* A peer that answers immediately: a socket that is its own peer. */
static void test_a_read_that_finds_none_looks_again_after_the_writes(void)
{
    const struct sockaddr_un nameless = {.sun_family = AF_UNIX};
    struct sockaddr_un name;
    socklen_t len = sizeof name;
    close(vm.devices[NET].fd);
    const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    vm.devices[NET].fd = fd;
    HOLDS(bind(fd, (const struct sockaddr *)&nameless, sizeof nameless.sun_family) == 0 &&
          getsockname(fd, (struct sockaddr *)&name, &len) == 0 &&
          connect(fd, (struct sockaddr *)&name, len) == 0);
    post("a");
    HOLDS(ring_serve_busy(&vm) == 1);
    post("R");
    HOLDS(ring_serve_busy(&vm) == 1 && are_answered("+"));
    post("bR");
    HOLDS(ring_serve_busy(&vm) > 0 && are_answered("+") && ring->ent_head == ring->ent_tail);
    HOLDS(vm.memory.hva[ring->entries[3].data] == 'b');
}

static void test_addresses(void)
{
    static const uint32_t operations[] = {HVT_RING_WRITE, HVT_RING_READ};
    static const uint32_t numbers[] = {HVT_HYPERCALL_NET_WRITE, HVT_HYPERCALL_NET_READ};
    for (uint32_t i = 0; i < 2; i++) {
        memset(ring, 0, sizeof *ring);
        ring_offer(&vm, ring, RING_INLINE);
        comes(1);
        post("Ra");
        HOLDS(ring_serve_busy(&vm) == 2 && were_sent(""));
        post_at(operations[i], M);
        HOLDS(ring_serve_busy(&vm) == -1 && atomic_load(&vm.has_fault) && vm.fault.gpa == M &&
              vm.fault.number == numbers[i] && were_sent("a")); /* what was posted before has been sent */
    }
}

static void test_unknown_handles_and_operations(void)
{
    comes(1);
    post("Raxb");
    ring->entries[2].handle = NET + 1;
    post("c");
    ring->entries[4].operation = 77;
    HOLDS(ring_serve_busy(&vm) == 5 && are_answered("+"));
    post("R");
    ring->entries[5].handle = 63; /* EINVAL ends the waiting, too */
    HOLDS(ring_serve_busy(&vm) == 1 && are_answered("-") && were_sent("ab"));
}

static void test_the_end_sends_what_waits(void)
{
    comes(2);
    post("R");
    HOLDS(ring_serve_busy(&vm) == 1);
    post("abR");
    HOLDS(ring_serve_busy(&vm) == 3 && were_sent(""));
    vm.shared->event = (struct vm_event){.kind = EVENT_HALT};
    ring_end(&vm);
    HOLDS(were_sent("ab") && are_answered("++") && vm.shared->event.kind == EVENT_HALT);
}

static void test_false_tails(void)
{
    static const uint32_t tails[] = {0, 1, 4, HVT_RING_ENTRIES, HVT_RING_ENTRIES + 9, UINT32_MAX, 0x80000000};
    for (size_t i = 0; i < sizeof tails / sizeof *tails; i++) {
        memset(ring, 0, sizeof *ring);
        ring_offer(&vm, ring, RING_INLINE);
        comes(1);
        post("Rabc");
        HOLDS(ring_serve_busy(&vm) == 4 && net_vm(&vm)->ring.waiting == 3);
        ring->ent_tail = tails[i];
        for (uint32_t k = 0; k < 4; k++) {
            HOLDS(ring_serve_busy(&vm) <= HVT_RING_ENTRIES && net_vm(&vm)->ring.waiting < RING_WAITING_MAX);
            HOLDS(ring_serve(&vm) <= HVT_RING_ENTRIES && !net_vm(&vm)->ring.waiting);
        }
        uint8_t frame[FRAME];
        while (recv(wire, frame, sizeof frame, 0) > 0)
            ;
    }
    memset(ring, 0, sizeof *ring);
    ring_offer(&vm, ring, RING_INLINE); /* for another guest: no state is left */
    post("R");
    HOLDS(ring_serve(&vm) == 1 && ring->com_tail == 1);
}

static bool within_limit(bool (*reached)(void))
{
    const uint64_t end = monotonic_ns() + LIMIT_S * 1000000000ull;
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

static bool it_is_awake(void)
{
    return !__atomic_load_n(&ring->needs_kick, __ATOMIC_SEQ_CST);
}

/* The worker itself, with a guest that reads, writes, and then does something else. */
static void test_a_pause_of_the_guest_sends_what_waits(void)
{
    for (uint32_t i = 0; i < 50; i++) {
        comes(1);
        HOLDS(ring_worker_wake(&vm) && (all_is_served() || within_limit(it_is_awake)));
        post("Ra");
        (void)ring_worker_wake(&vm); /* the worker may have gone to sleep before it saw the entries */
        struct pollfd sent = {.fd = wire, .events = POLLIN};
        if (poll(&sent, 1, (int)LIMIT_S * 1000) != 1)
            break;
        HOLDS(were_sent("a") && are_answered("+"));
    }
    HOLDS(ring->ent_tail == 100);
}

int main(void)
{
    static void (*const tests[])(void) = {
        test_the_order,
        test_a_limited_number_of_frames_waits,
        test_a_frame_is_as_it_was_when_it_was_posted,
        test_a_frame_that_is_too_large_to_wait_goes_in_its_order,
        test_unknown_handles_and_operations,
        test_the_receiver_may_run_before_a_read_finds_none,
        test_a_read_that_finds_none_looks_again_after_the_writes,
        test_addresses,
        test_the_end_sends_what_waits,
        test_false_tails,
        test_a_pause_of_the_guest_sends_what_waits,
    };
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        set_up();
        tests[i]();
        tear_down();
    }
    return claims_end();
}
