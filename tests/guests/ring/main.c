/*
 * Uses the network ring directly, without the guest library's net.c: like Solo5's bindings, or
 * wrongly.
 *
 *     ring CASE [--count=N]
 *
 *     layout    "ring at 0xG memory 0xM kick K words W": W words of the ring are not 0, without needs_kick
 *     again     a read while no frame waits: "read ret 1 len 0 id 77"
 *     refused   a write and a read with handles that are not a network, unknown operations, a frame of 65554
 *               bytes; then one frame of 60 bytes is sent: "refused: ret 2 id 7, heads E C"
 *     echo      sends received frames back until a frame contains "QUIT" at byte 14: "echo: N frames"
 *     flood     N frames, waiting for space in the ring: "flood: N frames"; N 0: forever
 *     drain     N frames, no kick, halts immediately
 *     bare      N kicks without an entry: "bare: N kicks"
 *     send-bad, read-bad     an entry whose buffer is the ring itself: the monitor must end the run
 *     drain-bad              send-bad without a kick, and an immediate halt with 0: the same
 *     narrow    a kick of two bytes: there is no such port
 *     lies      overwrites the indices of both sides and changes entries while they are served:
 *               "lies: survived"
 *     none      prints "features F ring 0xG"
 *
 *     bounce    receives N frames of TCP over IPv4, by the ring or (--calls) by hypercalls,
 *               then posts all of them together: "bounce: N frames"
 *     take      prints "ring: ready", then receives frames with the numbers of net_batch, up to the one with
 *               number 2^64 - 1: "ring: frames N reordered N lost N broken N"
 *
 * Status 0, or 1 and "ring: FAILED ...". Frames have 60 bytes, with their number from byte 14 on.
 */
#include <tender/guest.h>

#include "gate.h"

TENDER_MANIFEST(1, TENDER_NET("service0"));

#define HANDLE  1
#define FRAME   60u
#define BUFFERS HVT_RING_ENTRIES

static uint8_t buffers[BUFFERS][FRAME];
static uint8_t large[65554];
static volatile struct hvt_net_ring *ring;
static uint32_t tail, head;

#define FAIL(...) (printf("ring: FAILED "), printf(__VA_ARGS__), printf("\n"), guest_exit(1))

static void post(uint32_t operation, uint32_t handle, const volatile void *data, uint32_t len, uint32_t id)
{
    volatile struct hvt_ring_entry *entry = &ring->entries[tail % HVT_RING_ENTRIES];
    entry->operation = operation;
    entry->handle = handle;
    entry->data = gpa_of(data);
    entry->len = len;
    entry->id = id;
    ring->ent_tail = ++tail;
}

static void kick(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (ring->needs_kick) {
        gate_net_kick();
    }
}

static struct hvt_ring_commit answer(void)
{
    while (ring->com_tail == head) {
        __builtin_ia32_pause();
    }
    volatile struct hvt_ring_commit *commit = &ring->commits[head % HVT_RING_ENTRIES];
    struct hvt_ring_commit copy = {commit->id, commit->ret, commit->len, commit->reserved};
    ring->com_head = ++head;
    return copy;
}

static void wait_for_space(uint32_t outstanding)
{
    while (tail - ring->ent_head >= outstanding) {
        __builtin_ia32_pause();
    }
}

static void post_frame(uint64_t number)
{
    uint8_t *frame = buffers[tail % BUFFERS];
    memset(frame, 0xff, 12);
    frame[12] = 0x88;
    frame[13] = 0xb5;
    memcpy(frame + 14, &number, sizeof(number));
    post(HVT_RING_WRITE, HANDLE, frame, FRAME, (uint32_t)number);
}

static void layout(void)
{
    unsigned words = 0;
    for (size_t i = 0; i < sizeof(*ring) / sizeof(uint32_t); i++) {
        words += ((volatile uint32_t *)ring)[i] != 0;
    }
    words -= ring->needs_kick != 0;
    printf("ring at %#lx memory %#lx kick %u words %u\n", gpa_of(ring), guest_memory_bytes(),
           ring->needs_kick, words);
}

static void again(void)
{
    post(HVT_RING_READ, HANDLE, buffers[0], FRAME, 77);
    kick();
    struct hvt_ring_commit commit = answer();
    printf("read ret %d len %u id %u\n", commit.ret, commit.len, commit.id);
}

static void refused(void)
{
    static const uint32_t handles[] = {0, 2, 63, 64, 0x10001, UINT32_MAX};
    for (unsigned i = 0; i < sizeof(handles) / sizeof(handles[0]); i++) {
        post(HVT_RING_WRITE, handles[i], buffers[0], FRAME, 1);
        post(i, HANDLE, NULL, UINT32_MAX, i); /* becomes an unknown operation, below */
        ring->entries[(tail - 1) % HVT_RING_ENTRIES].operation = i < 1 ? 0 : 2 + i;
    }
    post(HVT_RING_WRITE, HANDLE, large, sizeof(large), 1);
    post(HVT_RING_READ, UINT32_MAX, NULL, 0, 7);
    post_frame(1);
    kick();
    struct hvt_ring_commit commit = answer();
    wait_for_space(1);
    printf("refused: ret %d id %u, heads %u %u\n", commit.ret, commit.id, ring->ent_head, ring->com_tail);
}

static void echo(void)
{
    uint64_t frames = 0;
    static uint8_t frame[1514];
    for (;;) {
        wait_for_space(HVT_RING_ENTRIES - 1);
        post(HVT_RING_READ, HANDLE, frame, sizeof(frame), (uint32_t)frames);
        kick();
        struct hvt_ring_commit commit = answer();
        if (commit.id != (uint32_t)frames) {
            FAIL("commit %u for read %lu", commit.id, frames);
        }
        if (commit.ret == HVT_R_AGAIN) {
            poll_wait(1000000000, NULL);
            continue;
        }
        frames++;
        if (memcmp(frame + 14, "QUIT", 4) == 0) {
            printf("echo: %lu frames\n", frames);
            return;
        }
        post(HVT_RING_WRITE, HANDLE, frame, commit.len, 0);
        kick();
        wait_for_space(1); /* there is only one buffer */
    }
}

static uint32_t read_frame(uint8_t *frame, uint32_t capacity, bool by_calls)
{
    if (by_calls) {
        struct hvt_net_read call = {.handle = HANDLE, .data = gpa_of(frame), .len = capacity};
        gate_net_read(&call);
        return call.ret == HVT_R_OK ? (uint32_t)call.len : 0;
    }
    post(HVT_RING_READ, HANDLE, frame, capacity, 0);
    kick();
    struct hvt_ring_commit commit = answer();
    return commit.ret == HVT_R_OK ? commit.len : 0;
}

static void bounce(uint64_t count, bool by_calls)
{
    static uint8_t frames[64][1514];
    uint32_t lens[64];
    printf("ring: ready\n");
    for (uint64_t i = 0; i < count && i < 64;) {
        lens[i] = read_frame(frames[i], sizeof(frames[i]), by_calls);
        if (!lens[i]) {
            poll_wait(1000000000, NULL);
        }
        i += lens[i] && frames[i][12] == 8 && frames[i][13] == 0 && frames[i][23] == 6;
    }
    for (uint64_t i = 0; i < count && i < 64; i++) {
        volatile struct hvt_ring_entry *entry = &ring->entries[tail++ % HVT_RING_ENTRIES];
        entry->operation = HVT_RING_WRITE;
        entry->handle = HANDLE;
        entry->data = gpa_of(frames[i]);
        entry->len = lens[i];
    }
    ring->ent_tail = tail;
    kick();
    wait_for_space(1);
    printf("bounce: %lu frames\n", count);
}

/* Posts reads in advance: as many as there are buffers. */
static void take(void)
{
    static uint8_t slots[HVT_RING_ENTRIES][64];
    uint64_t frames = 0, expected = 0, reordered = 0, lost = 0, broken = 0, number = 0, product;
    printf("ring: ready\n");
    for (uint32_t asked = 0, answered = 0; number != UINT64_MAX;) {
        while (asked - answered < HVT_RING_ENTRIES / 2) {
            post(HVT_RING_READ, HANDLE, slots[asked % HVT_RING_ENTRIES], sizeof(slots[0]), asked);
            asked++;
        }
        kick();
        bool nothing = false;
        for (; answered != asked; answered++) {
            struct hvt_ring_commit commit = answer();
            if (commit.id != answered) {
                FAIL("commit %u for read %u", commit.id, answered);
            }
            const uint8_t *frame = slots[answered % HVT_RING_ENTRIES];
            nothing = commit.ret == HVT_R_AGAIN;
            if (commit.ret || commit.len < 30 || frame[12] != 0x88 || frame[13] != 0xb5 ||
                number == UINT64_MAX) {
                continue;
            }
            memcpy(&number, frame + 14, 8);
            memcpy(&product, frame + commit.len - 8, 8);
            if (number == UINT64_MAX) {
                continue;
            }
            frames++;
            broken += product != number * 0x9e3779b97f4a7c15u;
            reordered += number < expected;
            lost += number > expected ? number - expected : 0;
            expected = number + 1;
        }
        if (nothing) {
            poll_wait(1000000000, NULL);
        }
    }
    printf("ring: frames %lu reordered %lu lost %lu broken %lu\n", frames, reordered, lost, broken);
}

static void flood(uint64_t count)
{
    for (uint64_t i = 0; i < count || !count; i++) {
        wait_for_space(HVT_RING_ENTRIES);
        post_frame(i);
        kick();
    }
    wait_for_space(1);
    printf("flood: %lu frames\n", count);
}

/* Nothing here waits for an answer, because there may be none. Each turn is one false index and one
 * kick. */
static void lies(uint64_t count)
{
    static const uint32_t steps[] = {1, 1023, 1024, 1025, 5000, 0x80000000, UINT32_MAX, 0xfffffc00};
    volatile struct hvt_ring_entry *entry = &ring->entries[0];
    for (unsigned i = 0; i < HVT_RING_ENTRIES; i++) {
        ring->entries[i].operation = i % 4; /* operation 3 does not exist */
        ring->entries[i].handle = i % 3;
        ring->entries[i].data = gpa_of(buffers[i]);
        ring->entries[i].len = i % FRAME;
    }
    for (uint64_t i = 0; i < count; i++) {
        ring->ent_head = (uint32_t)i * 77;
        ring->com_tail = (uint32_t)i * 1031;
        ring->com_head = ~(uint32_t)i;
        ring->ent_tail += steps[i % (sizeof(steps) / sizeof(steps[0]))];
        gate_net_kick();
        for (unsigned turn = 0; turn < 200; turn++) { /* while a worker serves the ring */
            entry->len = turn % 2 ? 0 : FRAME;
            entry->operation = turn % 3;
            ring->needs_kick = turn;
        }
    }
    printf("lies: survived\n");
}

int main(int argc, char **argv)
{
    const struct hvt_boot_info *boot = (const struct hvt_boot_info *)HVT_BOOT_INFO_GPA;
    const char *name = argc ? argv[0] : "";
    uint64_t count = 0;
    number_parse(args_value(argc, argv, "--count="), &count);
    ring = (volatile struct hvt_net_ring *)boot->net_ring;
    if (strcmp(name, "none") == 0) {
        printf("features %u ring %#lx memory %#lx\n", boot->host_features, boot->net_ring,
               guest_memory_bytes());
        return 0;
    }
    if (!(boot->host_features & HVT_FEATURE_NET_RING) || !ring) {
        FAIL("none is offered");
    }
    if (strcmp(name, "layout") == 0) {
        layout();
    } else if (strcmp(name, "again") == 0) {
        again();
    } else if (strcmp(name, "refused") == 0) {
        refused();
    } else if (strcmp(name, "echo") == 0) {
        echo();
    } else if (strcmp(name, "take") == 0) {
        take();
    } else if (strcmp(name, "bounce") == 0) {
        bounce(count, args_value(argc, argv, "--calls") != NULL);
    } else if (strcmp(name, "flood") == 0) {
        flood(count);
    } else if (strcmp(name, "drain") == 0) {
        for (uint64_t i = 0; i < count; i++) {
            post_frame(i);
        }
    } else if (strcmp(name, "bare") == 0) {
        for (uint64_t i = 0; i < count; i++) {
            gate_net_kick();
        }
        printf("bare: %lu kicks\n", count);
    } else if (strcmp(name, "send-bad") == 0 || strcmp(name, "read-bad") == 0) {
        post(name[0] == 's' ? HVT_RING_WRITE : HVT_RING_READ, HANDLE, ring, FRAME, 0);
        kick();
        for (;;) {
        }
    } else if (strcmp(name, "drain-bad") == 0) {
        post(HVT_RING_WRITE, HANDLE, ring, FRAME, 0);
    } else if (strcmp(name, "narrow") == 0) {
        __asm__ volatile("out %%ax, (%%dx)" : : "a"(0), "d"(HVT_PORT_NET_KICK));
    } else if (strcmp(name, "lies") == 0) {
        lies(count);
    } else {
        FAIL("no case '%s'", name);
    }
    return 0;
}
