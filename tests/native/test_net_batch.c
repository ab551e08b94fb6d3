/*
 * net_batch without KVM: what it sends and receives, what it refuses, and how its wait is
 * interrupted. Each test fills a vm by hand, as in test_hypercall.c. The network is one end of a
 * socket pair. Prints one TAP line for each check and exits with 1 if one fails.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "devices.h"
#include "holds.h"
#include "net_frame.h"
#include "runner.h"

#define M            0x400000u
#define TEXT         0x100000u
#define DATA         0x102000u
#define ARGS         0x200000u
#define FRAMES       0x201000u
#define BUFFER       0x210000u
#define BUFFER_BYTES 2048u
#define NET          1
#define BLOCK        2
#define OTHER        3
#define NUMBER       TENDER_HYPERCALL_NET_BATCH
#define PORT         (HVT_PORT_BASE + NUMBER)
#define MS           1000000ull
#define FRAME_SIZE   sizeof(struct tender_net_frame)

static struct vm vm;
static sigset_t saved;
static int wire, other_wire; /* the far ends */

static void attach_net(uint32_t handle, int *far)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, ends) < 0)
        abort();
    vm.devices[handle] = net_on(ends[0], (struct net_device){.is_socket = true});
    *far = ends[1];
}

static void set_up(void)
{
    memset(&vm, 0, sizeof vm);
    if (vm_init(&vm) < 0)
        abort();
    vm.memory.hva = mmap(NULL, M, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    vm.memory.bytes = M;
    vm.memory.ranges[0] = (struct guest_range){TEXT, DATA, SEGMENT_EXEC};
    vm.memory.ranges[1] = (struct guest_range){DATA, DATA + 0x1000, SEGMENT_READ};
    vm.memory.range_count = 2;
    guest_memory_ranges_set(&vm.memory);
    attach_net(NET, &wire);
    vm.devices[BLOCK] = disk_on(-1, (struct disk){0});
    attach_net(OTHER, &other_wire);
    vm.device_end = OTHER + 1;
    vm.count_of[MFT_NET_BASIC] = 2;
    vm.count_of[MFT_BLOCK_BASIC] = 1;
    vm.extensions = TENDER_FEATURE_GATE | TENDER_FEATURE_NET_BATCH;
    vm_enter(&vm, &saved);
}

static void tear_down(void)
{
    vm_leave(&vm, &saved);
    close(vm.devices[NET].fd);
    close(vm.devices[OTHER].fd);
    close(wire);
    close(other_wire);
    vm_release(&vm);
}

static uint8_t *at(gpa_t gpa)
{
    return vm.memory.hva + gpa;
}

static void put_frame(uint32_t index, gpa_t data, uint32_t len)
{
    const struct tender_net_frame frame = {.data = data, .len = len, .ret = 77};
    memcpy(at(FRAMES + index * FRAME_SIZE), &frame, sizeof frame);
}

static struct tender_net_frame frame(uint32_t index)
{
    struct tender_net_frame f;
    memcpy(&f, at(FRAMES + index * FRAME_SIZE), sizeof f);
    return f;
}

static bool came(uint32_t index, uint32_t len, int32_t ret)
{
    return frame(index).len == len && frame(index).ret == ret;
}

static enum verdict submit_as(struct tender_net_batch batch)
{
    batch.tx_done = batch.rx_done = 99;
    batch.ret = 99;
    memcpy(at(ARGS), &batch, sizeof batch);
    return hypercall_out(&vm, PORT, ARGS);
}

static enum verdict submit(uint32_t tx_count, uint32_t rx_count, uint64_t timeout_ns)
{
    return submit_as((struct tender_net_batch){.handle = NET,
                                               .frames = FRAMES,
                                               .tx_count = tx_count,
                                               .rx_count = rx_count,
                                               .timeout_ns = timeout_ns});
}

static bool ends_with(uint32_t tx_done, uint32_t rx_done, int32_t ret)
{
    struct tender_net_batch batch;
    memcpy(&batch, at(ARGS), sizeof batch);
    return batch.tx_done == tx_done && batch.rx_done == rx_done && batch.ret == ret;
}

static bool ends_the_guest(enum verdict verdict, gpa_t gpa, uint64_t len)
{
    const struct vm_event *event = &vm.shared->event;
    return verdict == EXIT && event->kind == EVENT_BAD_ACCESS && event->number == NUMBER &&
           event->gpa == gpa && event->len == len;
}

/* Whether the next frame on the wire is this text. */
static bool went_out(const char *text)
{
    char got[BUFFER_BYTES];
    ssize_t len = recv(wire, got, sizeof got, 0);
    return len == (ssize_t)strlen(text) && memcmp(got, text, strlen(text)) == 0;
}

static void comes_in(const char *text)
{
    HOLDS(send(wire, text, strlen(text), 0) == (ssize_t)strlen(text));
}

static void put_text(gpa_t gpa, const char *text)
{
    memcpy(at(gpa), text, strlen(text));
}

static void test_frames_go_out_in_order_and_then_come_in(void)
{
    put_text(BUFFER, "first");
    put_text(BUFFER + BUFFER_BYTES, "second");
    put_frame(0, BUFFER, 5);
    put_frame(1, BUFFER + BUFFER_BYTES, 6);
    for (uint32_t i = 2; i < 5; i++)
        put_frame(i, BUFFER + i * BUFFER_BYTES, BUFFER_BYTES);
    comes_in("third");
    comes_in("fourth");
    HOLDS(submit(2, 3, 0) == CONTINUE && ends_with(2, 2, HVT_R_OK));
    HOLDS(went_out("first") && went_out("second"));
    HOLDS(came(0, 5, HVT_R_OK) && came(1, 6, HVT_R_OK));
    HOLDS(came(2, 5, HVT_R_OK) && memcmp(at(BUFFER + 2 * BUFFER_BYTES), "third", 5) == 0);
    HOLDS(came(3, 6, HVT_R_OK) && memcmp(at(BUFFER + 3 * BUFFER_BYTES), "fourth", 6) == 0);
    HOLDS(came(4, BUFFER_BYTES, 77)); /* unchanged */
    const struct vm_counters *counters = &vm.shared->counters;
    HOLDS(counters->net_batches == 1);
    HOLDS(counters->net_tx_packets == 2 && counters->net_tx_bytes == 11);
    HOLDS(counters->net_rx_packets == 2 && counters->net_rx_bytes == 11);
}

static void test_frames_without_space_wait_for_the_next_call(void)
{
    comes_in("one");
    comes_in("two");
    comes_in("three");
    put_frame(0, BUFFER, BUFFER_BYTES);
    put_frame(1, BUFFER + BUFFER_BYTES, BUFFER_BYTES);
    HOLDS(submit(0, 2, 0) == CONTINUE && ends_with(0, 2, HVT_R_OK));
    put_frame(0, BUFFER, BUFFER_BYTES);
    HOLDS(submit(0, 2, UINT64_MAX) == CONTINUE && ends_with(0, 1, HVT_R_OK));
    HOLDS(came(0, 5, HVT_R_OK) && memcmp(at(BUFFER), "three", 5) == 0);
    put_frame(0, BUFFER, 0); /* an empty buffer receives nothing */
    comes_in("four");
    HOLDS(submit(0, 1, 0) == CONTINUE && ends_with(0, 0, HVT_R_OK) && came(0, 0, 77));
    put_frame(0, BUFFER, 3); /* too long: dropped, as with a single call */
    comes_in("two");
    HOLDS(submit(0, 1, 0) == CONTINUE && ends_with(0, 1, HVT_R_OK) && came(0, 3, HVT_R_OK));
    HOLDS(memcmp(at(BUFFER), "two", 3) == 0 && vm.shared->counters.net_rx_drops == 1);
}

static void test_a_frame_is_checked_as_if_it_came_alone(void)
{
    put_text(BUFFER, "good");
    put_frame(0, BUFFER, 1u << 20);
    put_frame(1, BUFFER, 4);
    put_frame(2, DATA, 4); /* read-only data may be sent */
    HOLDS(submit(3, 0, 0) == CONTINUE && ends_with(3, 0, HVT_R_OK));
    HOLDS(came(0, 1u << 20, HVT_R_EINVAL) && came(1, 4, HVT_R_OK) && came(2, 4, HVT_R_OK));
    HOLDS(went_out("good"));
    static const struct {
        gpa_t data;
        uint32_t len;
    } wild[] = {{M - 3, 4}, {M, 1}, {HVT_GDT_GPA, 4}, {UINT64_MAX, 2}, {(1ull << 32) + BUFFER, 4}};
    for (size_t i = 0; i < sizeof wild / sizeof *wild; i++) {
        put_frame(0, BUFFER, 4);
        put_frame(1, wild[i].data, wild[i].len);
        put_frame(2, BUFFER, 4);
        HOLDS(ends_the_guest(submit(3, 0, 0), wild[i].data, wild[i].len));
        HOLDS(came(0, 4, HVT_R_OK) && came(1, wild[i].len, 77) && came(2, 4, 77));
        put_frame(0, wild[i].data, wild[i].len);
        HOLDS(ends_the_guest(submit(0, 1, 0), wild[i].data, wild[i].len));
    }
    put_frame(0, DATA, 4);
    HOLDS(ends_the_guest(submit(0, 1, 0), DATA, 4));
    put_frame(0, TEXT, 4);
    HOLDS(ends_the_guest(submit(0, 1, MS), TEXT, 4));
}

static void test_false_counts_handles_and_arrays(void)
{
    static const uint32_t too_many[] = {TENDER_NET_BATCH_MAX + 1, 1u << 31, UINT32_MAX, UINT32_MAX / 32 + 2};
    put_frame(0, BUFFER, 4);
    for (size_t i = 0; i < sizeof too_many / sizeof *too_many; i++) {
        HOLDS(submit(too_many[i], 0, 0) == CONTINUE && ends_with(0, 0, HVT_R_EINVAL) && came(0, 4, 77));
        HOLDS(submit(0, too_many[i], 0) == CONTINUE && ends_with(0, 0, HVT_R_EINVAL));
        HOLDS(submit(too_many[i], -too_many[i] + 1, 0) == CONTINUE && ends_with(0, 0, HVT_R_EINVAL));
    }
    static const uint64_t no_net[] = {0, BLOCK, 4, 63, 64, UINT32_MAX, (1ull << 32) + NET, UINT64_MAX};
    for (size_t i = 0; i < sizeof no_net / sizeof *no_net; i++) {
        struct tender_net_batch batch = {
            .handle = no_net[i], .frames = UINT64_MAX, .tx_count = 1, .timeout_ns = 1};
        HOLDS(submit_as(batch) == CONTINUE && ends_with(0, 0, HVT_R_EINVAL));
    }
    static const gpa_t wild[] = {
        M - 2 * FRAME_SIZE + 1, M, UINT64_MAX - 8, (1ull << 32) + FRAMES, TEXT, DATA, 0x10,
        HVT_BOOT_INFO_GPA,      0};
    for (size_t i = 0; i < sizeof wild / sizeof *wild; i++) {
        struct tender_net_batch batch = {.handle = NET, .frames = wild[i], .tx_count = 1, .rx_count = 1};
        HOLDS(ends_the_guest(submit_as(batch), wild[i], 2 * FRAME_SIZE));
    }
    HOLDS(submit(0, 0, 0) == CONTINUE && ends_with(0, 0, HVT_R_OK));
    struct tender_net_batch none = {.handle = NET, .frames = M};
    HOLDS(submit_as(none) == CONTINUE && ends_with(0, 0, HVT_R_OK));
    for (uint32_t i = 0; i < 2 * TENDER_NET_BATCH_MAX; i++)
        put_frame(i, BUFFER, 64);
    comes_in("a");
    HOLDS(submit(TENDER_NET_BATCH_MAX, TENDER_NET_BATCH_MAX, 0) == CONTINUE);
    HOLDS(ends_with(TENDER_NET_BATCH_MAX, 1, HVT_R_OK));
    for (uint32_t i = 0; i < 2 * TENDER_NET_BATCH_MAX; i++)
        put_frame(i, BUFFER, 1500);
    for (uint32_t i = 0; i < 4; i++)
        HOLDS(submit(TENDER_NET_BATCH_MAX, 0, 0) == CONTINUE && ends_with(TENDER_NET_BATCH_MAX, 0, HVT_R_OK));
    HOLDS(vm.shared->counters.net_tx_drops > 0); /* the wire is full: dropped, and the guest goes on */
    HOLDS(hypercall_out(&vm, PORT, M - 47) == EXIT && vm.shared->event.kind == EVENT_BAD_ACCESS);
}

static void test_frames_that_come_in_over_the_array(void)
{
    /* The frame contains what it is written over: the second entry of the array, and a third one
     * after the count. */
    struct tender_net_frame on_wire[2] = {{.data = BUFFER, .len = 3, .ret = 77},
                                          {.data = HVT_GDT_GPA, .len = 512, .ret = 77}};
    HOLDS(send(wire, on_wire, sizeof on_wire, 0) == (ssize_t)sizeof on_wire);
    comes_in("abc");
    comes_in("not asked for");
    put_frame(0, FRAMES + FRAME_SIZE, 2 * FRAME_SIZE);
    put_frame(1, HVT_GDT_GPA, 512); /* this entry would end the guest */
    HOLDS(submit(0, 2, 0) == CONTINUE && ends_with(0, 2, HVT_R_OK));
    HOLDS(came(0, 2 * FRAME_SIZE, HVT_R_OK) && came(1, 3, HVT_R_OK) && came(2, 512, 77));
    HOLDS(memcmp(at(BUFFER), "abc", 3) == 0);
    /* A frame over the batch's own structure, which is written at the end from the copy. */
    put_frame(0, ARGS, BUFFER_BYTES);
    HOLDS(submit(0, 1, 0) == CONTINUE && ends_with(0, 1, HVT_R_OK));
    struct tender_net_batch batch;
    memcpy(&batch, at(ARGS), sizeof batch);
    HOLDS(batch.handle == NET && batch.frames == FRAMES && batch.rx_count == 1);
    /* One buffer for all: it holds the last frame. */
    comes_in("early");
    comes_in("later");
    for (uint32_t i = 0; i < 3; i++)
        put_frame(i, BUFFER, 16);
    HOLDS(submit(0, 3, 0) == CONTINUE && ends_with(0, 2, HVT_R_OK) && memcmp(at(BUFFER), "later", 5) == 0);
}

static void test_the_wait(void)
{
    put_frame(0, BUFFER, BUFFER_BYTES);
    uint64_t start_ns = monotonic_ns();
    HOLDS(submit(0, 1, 0) == CONTINUE && ends_with(0, 0, HVT_R_OK));
    HOLDS(submit(0, 1, 20 * MS) == CONTINUE && ends_with(0, 0, HVT_R_OK));
    HOLDS(monotonic_ns() - start_ns >= 20 * MS);
    comes_in("there");
    HOLDS(submit(0, 1, UINT64_MAX) == CONTINUE && ends_with(0, 1, HVT_R_OK)); /* does not wait */
    comes_in("again"); /* no frame was left: the call waits first, and the wait ends immediately */
    HOLDS(submit(0, 1, 1) == CONTINUE && ends_with(0, 1, HVT_R_OK) && came(0, 5, HVT_R_OK));
    HOLDS(send(other_wire, "x", 1, 0) == 1); /* on another device: this ends the wait, too */
    HOLDS(submit(0, 1, UINT64_MAX) == CONTINUE && ends_with(0, 0, HVT_R_OK));
    HOLDS(read(vm.devices[OTHER].fd, at(BUFFER), 1) == 1);
    comes_in("unread");
    HOLDS(submit(0, 0, UINT64_MAX) == CONTINUE && ends_with(0, 0, HVT_R_OK)); /* a plain poll */
}

/* ---- The net header: this wire shows it as a TAP's driver would see it ---- */

struct net_frame_on_wire {
    struct net_header header;
    char text[64];
};

static void offload_all(void)
{
    vm.extensions |= TENDER_FEATURE_NET_OFFLOAD;
    net_of(&vm.devices[NET])->has_header = true;
    net_of(&vm.devices[NET])->is_socket = false;
    net_of(&vm.devices[NET])->offload =
        TENDER_OFFLOAD_CSUM | TENDER_OFFLOAD_TSO4 | TENDER_OFFLOAD_TSO6 | TENDER_OFFLOAD_USO;
}

static struct tender_net_frame good_frame(void)
{
    return (struct tender_net_frame){.data = BUFFER,
                                     .len = 60,
                                     .ret = 77,
                                     .flags = TENDER_NET_NEEDS_CSUM,
                                     .gso_type = TENDER_GSO_UDP,
                                     .hdr_len = 42,
                                     .gso_size = 9,
                                     .csum_start = 34,
                                     .csum_offset = 6};
}

static int32_t sent_as(struct tender_net_frame f)
{
    memcpy(at(FRAMES), &f, sizeof f);
    HOLDS(submit(1, 0, 0) == CONTINUE);
    return frame(0).ret;
}

static void test_a_header_goes_out_as_it_is_or_not_at_all(void)
{
    struct net_frame_on_wire got;
    struct tender_net_frame f = good_frame();
    HOLDS(sent_as(f) == HVT_R_OK && recv(wire, &got, sizeof got, 0) == 60); /* not granted: not checked */
    vm.extensions |= TENDER_FEATURE_NET_OFFLOAD;
    HOLDS(sent_as(f) == HVT_R_EINVAL && recv(wire, &got, sizeof got, 0) < 0);
    offload_all();
    HOLDS(sent_as(f) == HVT_R_OK && recv(wire, &got, sizeof got, 0) == 70);
    HOLDS(memcmp(&got.header, &f.flags, sizeof got.header) == 0);
    f.flags |= TENDER_NET_DATA_VALID; /* a flag of received frames: not passed to the driver */
    HOLDS(sent_as(f) == HVT_R_OK && recv(wire, &got, sizeof got, 0) == 70 && got.header.flags == 1);
    f.gso_type = TENDER_GSO_TCP4 | TENDER_GSO_ECN;
    HOLDS(sent_as(f) == HVT_R_OK && recv(wire, &got, sizeof got, 0) == 70 && got.header.gso_type == 0x81);
    f.csum_start = 52; /* the last two bytes */
    HOLDS(sent_as(f) == HVT_R_OK && recv(wire, &got, sizeof got, 0) == 70);

#define LIE(change)                                                                                          \
    do {                                                                                                     \
        f = good_frame();                                                                                    \
        change;                                                                                              \
        HOLDS(sent_as(f) == HVT_R_EINVAL && recv(wire, &got, sizeof got, 0) < 0);                            \
    } while (0)
    LIE(f.flags = 0);
    LIE(f.flags = 0xff);
    LIE(f.flags |= 4);
    LIE(f.csum_start = 53);
    LIE(f.csum_start = f.csum_offset = 0xffff);
    LIE(f.hdr_len = 61);
    LIE(f.gso_size = 0);
    LIE(f.gso_type = 2);
    LIE(f.gso_type = 3);
    LIE(f.gso_type = 6);
    LIE(f.gso_type = 0x7f);
    LIE(f.gso_type = TENDER_GSO_ECN);
    LIE(f.gso_type = TENDER_GSO_UDP | TENDER_GSO_ECN);
    LIE(f.len = 39);
    LIE(f.len = 0);
    static const uint8_t types[] = {TENDER_GSO_TCP4, TENDER_GSO_TCP6, TENDER_GSO_UDP};
    for (unsigned i = 0; i < 3; i++) { /* not among the device's offloads */
        net_of(&vm.devices[NET])->offload = 15u & ~(2u << i);
        LIE(f.gso_type = types[i]);
    }
    net_of(&vm.devices[NET])->offload = 14;
    LIE(f.gso_type = 0);
    struct hvt_net_write plain = {NET, BUFFER, 60, 77};
    memcpy(at(ARGS), &plain, sizeof plain);
    HOLDS(hypercall(&vm, HVT_HYPERCALL_NET_WRITE, ARGS) == CONTINUE);
    static const struct net_header none;
    HOLDS(recv(wire, &got, sizeof got, 0) == 70 && memcmp(&got.header, &none, sizeof none) == 0);
}

static void comes_headed(struct net_header header, size_t len)
{
    struct net_frame_on_wire it = {.header = header};
    for (size_t i = 0; i < len; i++)
        it.text[i] = (char)(i + 1);
    HOLDS(send(wire, &it, sizeof header + len, 0) == (ssize_t)(sizeof header + len));
}

static uint64_t plain_read(uint64_t capacity)
{
    struct hvt_net_read in = {NET, BUFFER, capacity, 77};
    memcpy(at(ARGS), &in, sizeof in);
    HOLDS(hypercall(&vm, HVT_HYPERCALL_NET_READ, ARGS) == CONTINUE);
    memcpy(&in, at(ARGS), sizeof in);
    return in.ret == HVT_R_OK ? in.len : 0;
}

static void test_a_header_comes_in_with_its_frame_or_both_are_dropped(void)
{
    const struct net_header gso = {1, TENDER_GSO_UDP, 8, 10, 0, 6}, sum = {1, 0, 0, 0, 4, 2}, none = {0};
    offload_all();
    put_frame(0, BUFFER, BUFFER_BYTES);
    comes_headed(gso, 40);
    HOLDS(submit(0, 1, 0) == CONTINUE && ends_with(0, 1, HVT_R_OK) && came(0, 40, HVT_R_OK));
    struct tender_net_frame f = frame(0);
    HOLDS(memcmp(&f.flags, &gso, sizeof gso) == 0 && at(BUFFER)[39] == 40);
    comes_headed(none, 20);
    put_frame(0, BUFFER, BUFFER_BYTES);
    HOLDS(submit(0, 1, 0) == CONTINUE && came(0, 20, HVT_R_OK) && frame(0).flags == 0 &&
          frame(0).gso_type == 0);

    put_frame(0, BUFFER, 30); /* a frame that does not fit is dropped, and the next one is received */
    memset(at(BUFFER + 30), 0x5a, 8);
    comes_headed(gso, 31);
    comes_headed(sum, 31);
    comes_headed(none, 31);
    comes_headed(none, 29);
    HOLDS(submit(0, 1, 0) == CONTINUE && ends_with(0, 1, HVT_R_OK) && came(0, 29, HVT_R_OK));
    HOLDS(vm.shared->counters.net_rx_drops == 3 && at(BUFFER)[30] == 0x5a);
    comes_headed(gso, 30);
    put_frame(0, BUFFER, 30);
    HOLDS(submit(0, 1, 0) == CONTINUE && came(0, 30, HVT_R_OK)); /* just fits */

    comes_headed(gso, 40);
    comes_headed(sum, 9);
    HOLDS(plain_read(BUFFER_BYTES) == 9 && vm.shared->counters.net_rx_drops == 4);
    /* 0x0506 + 0x0708 + 0x0900 = 0x150e, and its complement at 6 */
    static const uint8_t summed[] = {1, 2, 3, 4, 5, 6, 0xea, 0xf1, 9};
    HOLDS(memcmp(at(BUFFER), summed, sizeof summed) == 0);
    comes_headed(sum, 9);
    HOLDS(plain_read(8) == 0); /* a cut frame has no checksum */
    comes_headed((struct net_header){1, 0, 0, 0, 0xffff, 0xffff}, 9);
    HOLDS(plain_read(BUFFER_BYTES) == 0);
    comes_headed(none, 0);
    HOLDS(plain_read(BUFFER_BYTES) == 0);
    for (unsigned i = 0; i < 70; i++)
        comes_headed(gso, 40);
    comes_headed(none, 5);
    HOLDS(plain_read(BUFFER_BYTES) == 0 &&
          plain_read(BUFFER_BYTES) == 5); /* at most 64 are dropped in one call */
}

static unsigned handled;

static void on_signal(int signal)
{
    (void)signal;
    handled++;
}

static void test_an_interrupted_wait_goes_on_and_sends_nothing_twice(void)
{
    put_text(BUFFER, "once");
    put_frame(0, BUFFER, 4);
    put_frame(1, BUFFER + BUFFER_BYTES, BUFFER_BYTES);
    raise(SIGUSR1); /* blocked here, unblocked where the call waits */
    uint64_t start_ns = monotonic_ns();
    HOLDS(submit(1, 1, 50 * MS) == EXIT && vm.shared->event.kind == EVENT_INTERRUPTED && handled == 1);
    HOLDS(went_out("once"));
    raise(SIGUSR1);
    HOLDS(hypercall_resume(&vm) == EXIT && vm.shared->event.kind == EVENT_INTERRUPTED && handled == 2);
    HOLDS(hypercall_resume(&vm) == CONTINUE && ends_with(1, 0, HVT_R_OK));
    HOLDS(monotonic_ns() - start_ns >= 50 * MS);
    char got;
    HOLDS(recv(wire, &got, 1, 0) < 0 && vm.shared->counters.net_tx_packets == 1);
    HOLDS(hypercall_resume(&vm) == CONTINUE); /* nothing left to resume */
    raise(SIGUSR1);
    HOLDS(submit(1, 1, UINT64_MAX) == EXIT && handled == 3);
    comes_in("late");
    HOLDS(hypercall_resume(&vm) == CONTINUE && ends_with(1, 1, HVT_R_OK) && came(1, 4, HVT_R_OK));
    HOLDS(vm.shared->counters.net_tx_packets == 2 && vm.shared->counters.net_batches == 2);
    /* It starts from its first frame. */
    HOLDS(submit(1, 1, 0) == CONTINUE && vm.shared->counters.net_tx_packets == 3);
}

static void test_a_stop_ends_the_wait_after_frames_were_sent(void)
{
    put_text(BUFFER, "sent");
    put_frame(0, BUFFER, 4);
    vm_stop(&vm);
    HOLDS(submit(1, 0, UINT64_MAX) == EXIT && vm.shared->event.kind == EVENT_STOPPED);
    HOLDS(went_out("sent"));
}

static void test_a_device_whose_other_end_is_gone(void)
{
    close(vm.devices[NET].fd);
    int ends[2];
    HOLDS(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends) == 0);
    vm.devices[NET].fd = ends[0];
    close(ends[1]);
    put_frame(0, BUFFER, 4);
    put_frame(1, BUFFER, BUFFER_BYTES);
    HOLDS(submit(1, 1, 0) == CONTINUE && ends_with(1, 0, HVT_R_OK));
    HOLDS(vm.shared->counters.net_tx_drops == 1 && net_of(&vm.devices[NET])->gone);
    HOLDS(submit(0, 1, MS) == CONTINUE && ends_with(0, 0, HVT_R_OK)); /* the time is over; it does not spin */
}

static void test_a_guest_without_the_feature_cannot_make_it(void)
{
    put_frame(0, BUFFER, 4);
    vm.extensions = TENDER_FEATURE_GATE | TENDER_FEATURE_BLOCK_BATCH;
    HOLDS(submit(1, 0, 0) == EXIT && vm.shared->event.kind == EVENT_BAD_PORT &&
          vm.shared->event.port == PORT);
    HOLDS(hypercall(&vm, NUMBER, ARGS) == EXIT && vm.shared->event.kind == EVENT_BAD_HYPERCALL);
    vm.extensions |= TENDER_FEATURE_NET_BATCH;
    for (uint32_t number = HVT_HYPERCALL_MAX; number < 300; number++)
        if (number != NUMBER && number != TENDER_HYPERCALL_BLOCK_BATCH)
            HOLDS(hypercall_out(&vm, HVT_PORT_BASE + number, ARGS) == EXIT &&
                  vm.shared->event.kind == EVENT_BAD_PORT);
    vm.count_of[MFT_NET_BASIC] = 0;
    HOLDS(submit(1, 0, 0) == EXIT && vm.shared->event.kind == EVENT_BAD_HYPERCALL);
    HOLDS(vm.shared->event.number == NUMBER);
}

/* Each call that reads drops and counts an empty datagram. The end is a hang-up after all datagrams
 * were read. */
static void test_empty_datagrams(int type)
{
    int ends[2];
    set_up();
    if (socketpair(AF_UNIX, type | SOCK_NONBLOCK, 0, ends) < 0 || dup2(ends[0], vm.devices[NET].fd) < 0 ||
        dup2(ends[1], wire) < 0)
        abort();
    close(ends[0]);
    close(ends[1]);
    HOLDS(send(wire, "", 0, 0) == 0 && send(wire, "", 0, 0) == 0 && send(wire, "behind", 6, 0) == 6);
    put_frame(0, BUFFER, BUFFER_BYTES);
    put_frame(1, BUFFER + BUFFER_BYTES, BUFFER_BYTES);
    HOLDS(submit(0, 2, 0) == CONTINUE && ends_with(0, 1, HVT_R_OK) && came(0, 6, HVT_R_OK));
    HOLDS(vm.shared->counters.net_rx_drops == 2 && !net_of(&vm.devices[NET])->gone);
    HOLDS(send(wire, "", 0, 0) == 0);
    uint64_t len = BUFFER_BYTES;
    HOLDS(net_receive_to(&vm, &vm.shared->counters, NET, BUFFER, &len, NULL) == HVT_R_AGAIN);
    HOLDS(vm.shared->counters.net_rx_drops == 3 && !net_of(&vm.devices[NET])->gone);
    HOLDS(send(wire, "", 0, 0) == 0 && send(wire, "last", 4, 0) == 4);
    close(wire);
    wire = -1;
    len = BUFFER_BYTES;
    HOLDS(net_receive_to(&vm, &vm.shared->counters, NET, BUFFER, &len, NULL) == HVT_R_OK && len == 4);
    len = BUFFER_BYTES;
    HOLDS(net_receive_to(&vm, &vm.shared->counters, NET, BUFFER, &len, NULL) == HVT_R_AGAIN);
    HOLDS(type != SOCK_SEQPACKET || net_of(&vm.devices[NET])->gone);
    tear_down();
}

int main(void)
{
    signal(SIGUSR1, on_signal);
    static void (*const tests[])(void) = {
        test_frames_go_out_in_order_and_then_come_in,
        test_frames_without_space_wait_for_the_next_call,
        test_a_frame_is_checked_as_if_it_came_alone,
        test_false_counts_handles_and_arrays,
        test_frames_that_come_in_over_the_array,
        test_the_wait,
        test_a_header_goes_out_as_it_is_or_not_at_all,
        test_a_header_comes_in_with_its_frame_or_both_are_dropped,
        test_an_interrupted_wait_goes_on_and_sends_nothing_twice,
        test_a_stop_ends_the_wait_after_frames_were_sent,
        test_a_device_whose_other_end_is_gone,
        test_a_guest_without_the_feature_cannot_make_it,
    };
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        set_up();
        tests[i]();
        tear_down();
    }
    test_empty_datagrams(SOCK_DGRAM);
    test_empty_datagrams(SOCK_SEQPACKET);
    return claims_end();
}
