/*
 * A listener that copies each range of guest memory that entered() reports has all of the guest's
 * memory. The listener here keeps such a copy. After every hypercall that writes, batch, mode of
 * the ring, emulated write and load, the copy is compared with memory, byte by byte. This includes
 * calls that are cut short, interrupted or refused. Prints one TAP line for each check and exits
 * with 1 if one fails.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "block.h"
#include "console.h"
#include "copy_fault.h"
#include "devices.h"
#include "entered.h"
#include "guest_access.h"
#include "holds.h"
#include "image_memory.h"
#include "kvm_ops.h"
#include "machine.h"
#include "net_frame.h"
#include "ring.h"
#include "runner.h"
#include "spawn.h"
#include "start_state.h"
#include "tcp_frames.h"

#define M        0x800000u
#define A        (M + HVT_RING_AREA_BYTES)
#define TEXT     0x100000u
#define TEXT_END 0x102000u
#define ARGS     0x200000u
#define ARRAY    0x201000u /* of a batch */
#define BUFFER   0x210000u
#define LONG     0x400000u
#define DISK     (4u << 20)
#define NET      1u
#define BLOCK    2u
#define HEADER   sizeof(struct net_header)
#define LIMIT_S  30
#define SOURCES  8

#define ANSWER (1u << ENTERED_ANSWER)
#define FRAMED (1u << ENTERED_FRAME)
#define BLOCKS (1u << ENTERED_BLOCK)
#define RINGED (1u << ENTERED_RING)

static struct vm vm;
static struct hvt_net_ring *ring;
static int wire, disk, console;

/* ---- the listener */

static uint8_t replica[A];
static uint32_t told; /* one bit for each enum entered_source */
static uint64_t told_bytes[SOURCES];
static unsigned strays;

static void on_entered(struct entry_listener *listener, gpa_t gpa, uint64_t len, enum entered_source source)
{
    (void)listener;
    if (gpa >= A || !len || len > A - gpa) {
        strays++;
        return;
    }
    told |= 1u << source;
    told_bytes[source] += len;
    memcpy(replica + gpa, vm.memory.hva + gpa, len);
}

static struct entry_listener listener = {on_entered};

/* The guest has written what it wants, and the copy starts here. */
static void begin(void)
{
    memcpy(replica, vm.memory.hva, A);
    told = 0;
    memset(told_bytes, 0, sizeof told_bytes);
}

static bool heard(uint32_t sources)
{
    const bool agrees = !strays && memcmp(replica, vm.memory.hva, A) == 0;
    if (!agrees || told != sources)
        printf("# reported sources %#x, expected %#x; %u strays; memory is %sthe copy\n", told, sources,
               strays, agrees ? "" : "not ");
    return agrees && told == sources;
}

/* ---- a VM */

/* Makes a file whose words are their offsets. */
static int numbered_file(uint64_t bytes)
{
    static uint64_t words[DISK / sizeof(uint64_t)];
    const int fd = memfd_create("words", 0);
    for (uint64_t i = 0; i < bytes / sizeof *words; i++)
        words[i] = i * sizeof *words;
    if (pwrite(fd, words, bytes, 0) != (ssize_t)bytes)
        abort();
    return fd;
}

static void set_up(bool header)
{
    int net[2], pipe_ends[2];
    memset(&vm, 0, sizeof vm);
    if (vm_init(&vm) < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, net) < 0 ||
        pipe2(pipe_ends, O_NONBLOCK) < 0)
        abort();
    vm.memory.hva = mmap(NULL, A, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    disk = numbered_file(DISK);
    if (vm.memory.hva == MAP_FAILED)
        abort();
    /* So that no write repeats the bytes that were there before. */
    memset(vm.memory.hva + TEXT_END, 0x5a, M - TEXT_END);
    vm.memory.bytes = M;
    vm.memory.mapped_bytes = A;
    vm.memory.ranges[0] = (struct guest_range){TEXT, TEXT_END, SEGMENT_EXEC};
    vm.memory.range_count = 1;
    guest_memory_ranges_set(&vm.memory);
    vm.memory.listener = &listener;
    vm.devices[NET] = net_on(net[0], (struct net_device){.is_socket = !header, .has_header = header});
    vm.devices[BLOCK] = disk_on(disk, (struct disk){.capacity = DISK});
    vm.device_end = BLOCK + 1;
    vm.count_of[MFT_NET_BASIC] = vm.count_of[MFT_BLOCK_BASIC] = 1;
    vm.extensions = TENDER_FEATURE_GATE | TENDER_FEATURE_BLOCK_BATCH | TENDER_FEATURE_NET_BATCH |
                    (header ? TENDER_FEATURE_NET_OFFLOAD : 0);
    wire = net[1];
    console = pipe_ends[0];
    console_set(&vm, pipe_ends[1]);
    sigset_t saved;
    vm_enter(&vm, &saved);
}

static void tear_down(void)
{
    sigset_t none;
    sigemptyset(&none);
    if (net_vm(&vm)->ring.shared)
        ring_worker_stop(&vm);
    vm_leave(&vm, &none);
    disk_map_close(&disk_of(&vm.devices[BLOCK])->map);
    close(vm.devices[NET].fd);
    close(wire);
    close(disk);
    close(console);
    close(vm.console.fd);
    munmap(vm.memory.hva, A);
    vm.memory.hva = NULL;
    vm_release(&vm);
}

static void *at(gpa_t gpa)
{
    return vm.memory.hva + gpa;
}

static uint32_t called; /* one bit for each hypercall that was handled */

static enum verdict call(uint32_t number, const void *args, size_t bytes)
{
    memcpy(at(ARGS), args, bytes);
    begin();
    const enum verdict verdict = hypercall_out(&vm, HVT_PORT_BASE + number, ARGS);
    called |= (uint32_t)(verdict == CONTINUE) << number;
    return verdict;
}

static enum verdict resume(void)
{
    begin();
    return hypercall_resume(&vm);
}

static bool is_left(enum verdict verdict, uint32_t kind)
{
    return verdict == EXIT && vm.shared->event.kind == kind;
}

/* A frame of `len` bytes that the guest does not have yet. */
static void comes(size_t len)
{
    static uint8_t frame[70000];
    static uint8_t number;
    memset(frame, ++number, sizeof frame);
    HOLDS(send(wire, frame, len, 0) == (ssize_t)len);
}

static void comes_headed(struct net_header header, const void *frame, size_t len)
{
    static uint8_t bytes[HEADER + TCP_LARGE_MAX];
    memcpy(bytes, &header, HEADER);
    memcpy(bytes + HEADER, frame, len);
    HOLDS(send(wire, bytes, HEADER + len, 0) == (ssize_t)(HEADER + len));
}

/* ---- calls without a device */

static void test_calls_without_a_device(void)
{
    const struct hvt_walltime walltime = {0};
    HOLDS(call(HVT_HYPERCALL_WALLTIME, &walltime, sizeof walltime) == CONTINUE && heard(ANSWER));
    HOLDS(told_bytes[ENTERED_ANSWER] == sizeof walltime);
    struct hvt_poll wait = {0, 99, 99};
    HOLDS(call(HVT_HYPERCALL_POLL, &wait, sizeof wait) == CONTINUE && heard(ANSWER));
    comes(60);
    wait.timeout_nsecs = UINT64_MAX;
    HOLDS(call(HVT_HYPERCALL_POLL, &wait, sizeof wait) == CONTINUE && heard(ANSWER));
    HOLDS(recv(vm.devices[NET].fd, at(BUFFER), 60, 0) == 60);
    wait.timeout_nsecs = 1000000;
    raise(SIGUSR1);
    HOLDS(is_left(call(HVT_HYPERCALL_POLL, &wait, sizeof wait), EVENT_INTERRUPTED) && heard(0));
    HOLDS(resume() == CONTINUE && heard(ANSWER));

    const struct hvt_puts puts = {BUFFER, 8};
    HOLDS(call(HVT_HYPERCALL_PUTS, &puts, sizeof puts) == CONTINUE && heard(0));
    struct hvt_halt halt = {BUFFER, 3};
    HOLDS(is_left(call(HVT_HYPERCALL_HALT, &halt, sizeof halt), EVENT_HALT) && heard(0));
    HOLDS(is_left(call(0, &halt, sizeof halt), EVENT_BAD_HYPERCALL) && heard(0));
    HOLDS(is_left(hypercall(&vm, HVT_HYPERCALL_WALLTIME, TEXT), EVENT_BAD_ACCESS) && heard(0));
}

/* ---- disks */

static enum verdict transfer(uint32_t number, uint64_t offset, gpa_t data, uint64_t len)
{
    const struct hvt_block_write args = {BLOCK, offset, data, len, 77};
    return call(number, &args, sizeof args);
}

static enum verdict reads(uint64_t offset, gpa_t data, uint64_t len)
{
    return transfer(HVT_HYPERCALL_BLOCK_READ, offset, data, len);
}

static int32_t block_answer(void)
{
    struct hvt_block_write args;
    memcpy(&args, at(ARGS), sizeof args);
    return args.ret;
}

static void map_disk(void)
{
    disk_map_open(&disk_of(&vm.devices[BLOCK])->map, disk, DISK, false, UINT32_MAX,
                  &(uint64_t){DISK_MAPPED_BYTES_MAX});
    vm.devices_mapped = true;
    copy_fault_prepare(&vm);
}

static void test_disks(void)
{
    HOLDS(reads(0, BUFFER, 4096) == CONTINUE && heard(ANSWER | BLOCKS)); /* by a system call */
    HOLDS(told_bytes[ENTERED_BLOCK] == 4096);
    map_disk();
    HOLDS(reads(8192, BUFFER, 4096) == CONTINUE && heard(ANSWER | BLOCKS));
    HOLDS(reads(8192, BUFFER + 4096, 4096) == CONTINUE && heard(ANSWER | BLOCKS)); /* by a copy */
    HOLDS(reads(12287, BUFFER + 1, 4096) == CONTINUE && heard(ANSWER | BLOCKS));
    /* The rest by a system call. */
    HOLDS(reads(8192, BUFFER + 8, 8192) == CONTINUE && heard(ANSWER | BLOCKS));
    HOLDS(transfer(HVT_HYPERCALL_BLOCK_WRITE, 0, BUFFER, 512) == CONTINUE && heard(ANSWER));
    HOLDS(transfer(HVT_HYPERCALL_BLOCK_WRITE, 0, BUFFER, 512) == CONTINUE && heard(ANSWER));
    HOLDS(reads(DISK, BUFFER, 512) == CONTINUE && block_answer() == HVT_R_EINVAL && heard(ANSWER));
    HOLDS(is_left(reads(0, TEXT, 512), EVENT_BAD_ACCESS) && heard(0));

    raise(SIGUSR1); /* blocked here, unblocked between the pieces */
    HOLDS(is_left(reads(0, LONG, 3u << 20), EVENT_INTERRUPTED) && heard(BLOCKS));
    HOLDS(told_bytes[ENTERED_BLOCK] == BLOCK_PIECE_BYTES);
    HOLDS(resume() == CONTINUE && heard(ANSWER | BLOCKS) &&
          told_bytes[ENTERED_BLOCK] == 2 * BLOCK_PIECE_BYTES);
}

static void test_a_truncated_disk(void)
{
    HOLDS(ftruncate(disk, 1024) == 0);
    /* Only 512 of the bytes exist. */
    HOLDS(reads(512, BUFFER, 4096) == CONTINUE && block_answer() == HVT_R_EUNSPEC);
    HOLDS(heard(ANSWER | BLOCKS));
    HOLDS(*(uint64_t *)at(BUFFER + 504) == 1016);

    HOLDS(ftruncate(disk, DISK) == 0);
    map_disk();
    HOLDS(reads(0, LONG, 8192) == CONTINUE && block_answer() == HVT_R_OK);
    HOLDS(ftruncate(disk, 4096) == 0);
    memset(at(LONG), 0x33, 8192); /* a fault ends the copy of the second page */
    HOLDS(reads(0, LONG, 8192) == CONTINUE && block_answer() == HVT_R_EUNSPEC && heard(ANSWER | BLOCKS));
    HOLDS(memcmp(at(LONG), at(LONG + 4096), 4096) != 0);
}

static void test_block_batch(void)
{
    static const struct tender_block_request requests[] = {
        {TENDER_BLOCK_READ, 77, BLOCK, 0, BUFFER, 512},
        {TENDER_BLOCK_WRITE, 77, BLOCK, 512, BUFFER, 512},
        {TENDER_BLOCK_FLUSH, 77, BLOCK, 0, 0, 0},
        {TENDER_BLOCK_READ, 77, NET, 0, BUFFER, 512},
        /* Over the requests after it. */
        {TENDER_BLOCK_READ, 77, BLOCK, 4096, ARRAY + 3 * sizeof *requests, 24},
        {99, 77, BLOCK, 0, BUFFER, 512},
        {TENDER_BLOCK_READ, 77, BLOCK, 0, LONG, 2u << 20},
    };
    enum { COUNT = sizeof requests / sizeof *requests };
    struct tender_block_batch batch = {ARRAY, COUNT, 99, 99, 0};
    memcpy(at(ARRAY), requests, sizeof requests);
    HOLDS(call(TENDER_HYPERCALL_BLOCK_BATCH, &batch, sizeof batch) == CONTINUE && heard(ANSWER | BLOCKS));
    HOLDS(told_bytes[ENTERED_BLOCK] == 512 + 24 + (2u << 20));

    memcpy(at(ARRAY), requests, sizeof requests);
    raise(SIGUSR1);
    HOLDS(is_left(call(TENDER_HYPERCALL_BLOCK_BATCH, &batch, sizeof batch), EVENT_INTERRUPTED));
    HOLDS(heard(ANSWER | BLOCKS));
    HOLDS(told_bytes[ENTERED_ANSWER] == 3 * sizeof requests[0].ret); /* after the flush */
    raise(SIGUSR1);
    /* In the middle of the last request. */
    HOLDS(is_left(resume(), EVENT_INTERRUPTED) && heard(ANSWER | BLOCKS));
    HOLDS(resume() == CONTINUE && heard(ANSWER | BLOCKS));
    batch.count = TENDER_BLOCK_BATCH_MAX + 1;
    HOLDS(call(TENDER_HYPERCALL_BLOCK_BATCH, &batch, sizeof batch) == CONTINUE && heard(ANSWER));
}

/* ---- frames */

static enum verdict receive(gpa_t data, uint32_t capacity)
{
    const struct hvt_net_read args = {NET, data, capacity, 77};
    return call(HVT_HYPERCALL_NET_READ, &args, sizeof args);
}

static bool received(int32_t ret, uint64_t len)
{
    struct hvt_net_read args;
    memcpy(&args, at(ARGS), sizeof args);
    return args.ret == ret && (ret != HVT_R_OK || args.len == len);
}

/* `beside`: another thread may look at memory while the frame comes. */
static void receive_all_kinds(bool beside)
{
    net_vm(&vm)->ring.woken = beside;
    HOLDS(receive(BUFFER, 1514) == CONTINUE && received(HVT_R_AGAIN, 0) && heard(ANSWER));
    comes(60);
    HOLDS(receive(BUFFER, 1514) == CONTINUE && received(HVT_R_OK, 60) && heard(ANSWER | FRAMED));
    HOLDS(told_bytes[ENTERED_FRAME] == 60);
    comes(1514);
    HOLDS(receive(BUFFER, 1514) == CONTINUE && received(HVT_R_OK, 1514) && heard(ANSWER | FRAMED));
    comes(3000); /* it is dropped, but was written */
    HOLDS(receive(BUFFER, 1514) == CONTINUE && received(HVT_R_AGAIN, 0) && heard(ANSWER | FRAMED));
    comes(3000);
    comes(0);
    comes(61);
    HOLDS(receive(BUFFER, 1514) == CONTINUE && received(HVT_R_OK, 61) && heard(ANSWER | FRAMED));
    comes(60);
    HOLDS(receive(M - 60, 60) == CONTINUE && received(HVT_R_OK, 60) && heard(ANSWER | FRAMED));
    comes(60);
    HOLDS(receive(BUFFER, 0) == CONTINUE && received(HVT_R_AGAIN, 0) && heard(ANSWER));
    HOLDS(is_left(receive(TEXT, 60), EVENT_BAD_ACCESS) && heard(0));
    HOLDS(receive(ARGS, 60) == CONTINUE && heard(ANSWER | FRAMED)); /* the frame comes to its own structure */
    net_vm(&vm)->ring.woken = false;
}

static void test_frames(void)
{
    receive_all_kinds(false);
    receive_all_kinds(true);
    struct hvt_net_write out = {NET, BUFFER, 60, 77};
    HOLDS(call(HVT_HYPERCALL_NET_WRITE, &out, sizeof out) == CONTINUE && heard(ANSWER));
    out.handle = BLOCK;
    HOLDS(call(HVT_HYPERCALL_NET_WRITE, &out, sizeof out) == CONTINUE && heard(ANSWER));

    net_of(&vm.devices[NET])->detached = true; /* until the interface has been checked */
    net_vm(&vm)->needs_check = true;
    HOLDS(is_left(receive(BUFFER, 60), EVENT_NETWORK) && heard(0));
    comes(60);
    enum verdict verdict = resume();
    while (is_left(verdict, EVENT_NETWORK) && heard(0))
        verdict = resume();
    HOLDS(verdict == CONTINUE && heard(ANSWER | FRAMED));

    close(wire);
    wire = -1;
    HOLDS(receive(BUFFER, 60) == CONTINUE && received(HVT_R_AGAIN, 0) && heard(ANSWER));
    HOLDS(receive(BUFFER, 60) == CONTINUE && received(HVT_R_AGAIN, 0) && heard(ANSWER));
}

static enum verdict batch_of(uint32_t tx, uint32_t rx, uint64_t timeout_ns, gpa_t data)
{
    const struct tender_net_batch batch = {
        .handle = NET, .frames = ARRAY, .tx_count = tx, .rx_count = rx, .timeout_ns = timeout_ns};
    for (uint32_t i = 0; i < tx + rx; i++) {
        const struct tender_net_frame frame = {
            .data = data + i * 0x800, .len = i < tx ? 60 : 0x800, .ret = 77};
        memcpy(at(ARRAY + i * sizeof frame), &frame, sizeof frame);
    }
    return call(TENDER_HYPERCALL_NET_BATCH, &batch, sizeof batch);
}

static void test_net_batch(void)
{
    comes(60);
    comes(61);
    HOLDS(batch_of(2, 3, 0, BUFFER) == CONTINUE && heard(ANSWER | FRAMED));
    HOLDS(told_bytes[ENTERED_FRAME] == 121);
    HOLDS(batch_of(1, 2, 1000, BUFFER) == CONTINUE && heard(ANSWER));
    comes(60);
    HOLDS(batch_of(0, 2, UINT64_MAX, BUFFER) == CONTINUE && heard(ANSWER | FRAMED));
    raise(SIGUSR1);
    HOLDS(is_left(batch_of(2, 2, UINT64_MAX, BUFFER), EVENT_INTERRUPTED) && heard(ANSWER));
    comes(60);
    HOLDS(resume() == CONTINUE && heard(ANSWER | FRAMED));
    HOLDS(is_left(batch_of(1, 1, 0, TEXT), EVENT_BAD_ACCESS));
    HOLDS(batch_of(TENDER_NET_BATCH_MAX + 1, 0, 0, BUFFER) == CONTINUE && heard(ANSWER));
}

static const struct net_header unfinished = {
    .flags = TENDER_NET_NEEDS_CSUM, .csum_start = TCP, .csum_offset = 16};
static const struct net_header large = {.flags = TENDER_NET_NEEDS_CSUM,
                                        .gso_type = TENDER_GSO_TCP4,
                                        .gso_size = 1000,
                                        .csum_start = TCP,
                                        .csum_offset = 16};

static void test_frames_with_a_header(void)
{
    make_stretch(1, 1000, 1000, ACK);
    comes_headed((struct net_header){0}, frames[0], lens[0]);
    HOLDS(receive(BUFFER, 2000) == CONTINUE && received(HVT_R_OK, lens[0]) && heard(ANSWER | FRAMED));
    put16(frames[0] + TCP + 16, 0x1234); /* the receiver must complete it */
    comes_headed(unfinished, frames[0], lens[0]);
    HOLDS(receive(BUFFER, 2000) == CONTINUE && received(HVT_R_OK, lens[0]) && heard(ANSWER | FRAMED));
    HOLDS(memcmp(at(BUFFER), frames[0], lens[0]) != 0);
    comes_headed(large, frames[0], lens[0]); /* it is dropped, but was written */
    HOLDS(receive(BUFFER, 2000) == CONTINUE && received(HVT_R_AGAIN, 0) && heard(ANSWER | FRAMED));
    comes_headed((struct net_header){0}, frames[0], lens[0]);
    HOLDS(receive(BUFFER, 100) == CONTINUE && received(HVT_R_AGAIN, 0) && heard(ANSWER | FRAMED));
    comes_headed((struct net_header){0}, frames[0], 0);
    HOLDS(receive(BUFFER, 100) == CONTINUE && received(HVT_R_AGAIN, 0) && heard(ANSWER));
    /* The guest has the offload, and receives the frame with its header. */
    comes_headed(large, frames[0], lens[0]);
    HOLDS(batch_of(0, 1, 0, BUFFER) == CONTINUE && heard(ANSWER | FRAMED));
}

/* ---- the ring */

static void post(uint32_t operation, gpa_t data, uint32_t len)
{
    const uint32_t tail = ring->ent_tail;
    ring->entries[tail % HVT_RING_ENTRIES] =
        (struct hvt_ring_entry){.operation = operation, .handle = NET, .data = data, .len = len, .id = tail};
    __atomic_store_n(&ring->ent_tail, tail + 1, __ATOMIC_SEQ_CST);
}

static void offer(uint32_t mode)
{
    ring = at(M);
    begin();
    ring_offer(&vm, ring, mode);
    HOLDS(ring->needs_kick && heard(RINGED));
}

static int32_t serve(int32_t (*how)(struct vm *))
{
    begin();
    return how(&vm);
}

static void test_the_ring(void)
{
    offer(RING_INLINE);
    comes(60);
    for (int i = 0; i < 2; i++) {
        post(HVT_RING_READ, BUFFER, 1514);
        post(HVT_RING_WRITE, BUFFER + 4096, 60);
    }
    HOLDS(serve(ring_serve) == 4 && heard(RINGED | FRAMED) && ring->com_tail == 2);
    HOLDS(told_bytes[ENTERED_FRAME] == 60);

    net_vm(&vm)->ring.woken =
        true; /* like the worker: writes that follow a received frame wait in the ring's area */
    comes(60);
    post(HVT_RING_READ, BUFFER, 1514);
    for (uint32_t i = 0; i < RING_WAITING_MAX + 1; i++)
        post(HVT_RING_WRITE, BUFFER + 64 * i, 60);
    HOLDS(serve(ring_serve_busy) == RING_WAITING_MAX + 2 && heard(RINGED | FRAMED));
    HOLDS(net_vm(&vm)->ring.waiting == 1);
    post(HVT_RING_READ, BUFFER, 1514);
    HOLDS(serve(ring_serve_busy) == 1 && heard(RINGED) && net_vm(&vm)->ring.waiting == 0);
    post(HVT_RING_READ, TEXT, 1514);
    HOLDS(serve(ring_serve) == -1 && heard(0));
}

static void await_commit(uint32_t tail)
{
    struct timespec now, end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    do
        clock_gettime(CLOCK_MONOTONIC, &now);
    while (__atomic_load_n(&ring->com_tail, __ATOMIC_ACQUIRE) != tail && now.tv_sec < end.tv_sec + LIMIT_S);
}

static void test_the_rings_worker(void)
{
    offer(RING_WORKER);
    comes(60);
    comes(61);
    post(HVT_RING_READ, BUFFER, 1514);
    begin();
    HOLDS(ring_kicked(&vm) == CONTINUE && ring->com_tail == 1); /* this also wakes the worker */
    post(HVT_RING_READ, BUFFER + 4096, 1514);
    memcpy(replica + M + offsetof(struct hvt_net_ring, entries), ring->entries, sizeof ring->entries);
    memcpy(replica + M + offsetof(struct hvt_net_ring, ent_tail), &ring->ent_tail, sizeof ring->ent_tail);
    HOLDS(ring_kicked(&vm) == CONTINUE);
    await_commit(2);
    ring_worker_stop(&vm);
    HOLDS(ring->com_tail == 2 && heard(RINGED | FRAMED) && told_bytes[ENTERED_FRAME] == 121);
}

static void test_segments_of_a_large_frame(void)
{
    static uint8_t frame[TCP_LARGE_MAX];
    make_stretch(1, 1000, 1000, ACK);
    memcpy(frame, frames[0], lens[0]);
    memset(frame + lens[0], 0x77, 2500 - 1000);
    const size_t len = HEAD + 2500;
    put16(frame + IP + 2, (uint32_t)len - IP);
    net_of(&vm.devices[NET])->segments = true;
    offer(RING_INLINE);
    comes_headed(large, frame, len);
    comes_headed(large, frame, len);
    comes_headed((struct net_header){0}, frame, len);
    for (int i = 0; i < 2; i++) {
        HOLDS(receive(BUFFER, 1514) == CONTINUE && received(HVT_R_OK, HEAD + 1000) && heard(ANSWER | FRAMED));
        HOLDS(receive(BUFFER, 1514) == CONTINUE && received(HVT_R_OK, HEAD + 1000) && heard(ANSWER | FRAMED));
        post(HVT_RING_READ, BUFFER + 4096, 1514);
        HOLDS(serve(ring_serve) == 1 && heard(RINGED | FRAMED) &&
              net_vm(&vm)->cut.at == net_vm(&vm)->cut.end);
    }
    HOLDS(receive(BUFFER, 1514) == CONTINUE && received(HVT_R_AGAIN, 0) &&
          heard(ANSWER | FRAMED)); /* plain */
    comes_headed(large, frame, len);
    HOLDS(receive(BUFFER, 100) == CONTINUE && received(HVT_R_AGAIN, 0) &&
          heard(ANSWER | FRAMED)); /* each segment is dropped */
    frame[IP] = 0x65;
    comes_headed(large, frame, len);
    HOLDS(receive(BUFFER, 1514) == CONTINUE && received(HVT_R_AGAIN, 0) &&
          heard(ANSWER | FRAMED)); /* not TCP */
}

/* ---- writes without a hypercall */

static void test_emulated_writes(void)
{
    struct exception fault;
    const uint64_t value = 0x1122334455667788u;
    begin();
    HOLDS(guest_write(&vm.memory, BUFFER + 4092, &value, sizeof value, THROUGH_STACK, &fault));
    HOLDS(heard(1u << ENTERED_PROCESSOR) && told_bytes[ENTERED_PROCESSOR] == sizeof value);
    HOLDS(!guest_write(&vm.memory, TEXT_END - 4, &value, sizeof value, THROUGH_DATA, &fault));
    HOLDS(heard(1u << ENTERED_PROCESSOR) && told_bytes[ENTERED_PROCESSOR] == sizeof value);
}

static void test_memory_as_the_image_has_it(void)
{
    enum { IMAGE_BYTES = 0x3000 };
    const struct elf_image image = {
        .kernel_end = TEXT + IMAGE_BYTES,
        .bss_end = TEXT + IMAGE_BYTES,
        .segment_count = 1,
        .segments = {{.start = TEXT, .end = TEXT + IMAGE_BYTES, .flags = SEGMENT_READ | SEGMENT_WRITE}},
    };
    const uint64_t bytes = start_state_template_bytes(&image);
    const int template_fd = numbered_file(bytes);
    munmap(vm.memory.hva, A);
    memset(replica, 0, A);
    told = 0;
    HOLDS(image_memory_map(&vm.memory, &image, template_fd, bytes, M, A) == 0);
    HOLDS(heard(1u << ENTERED_START_STATE) && *(uint64_t *)(void *)(replica + TEXT + 8) == TEXT + 8);

    HOLDS(guest_memory_keep(&vm.memory, template_fd) == 0);
    memset(at(TEXT), 0x44, IMAGE_BYTES);
    memset(at(BUFFER), 0x44, IMAGE_BYTES);
    begin();
    HOLDS(guest_memory_reset(&vm.memory) == 0 && heard(1u << ENTERED_START_STATE));
    HOLDS(*(uint8_t *)at(BUFFER) == 0 && *(uint64_t *)at(TEXT + 8) == TEXT + 8);
    close(template_fd);
}

/* Boot info, and what the VM's holder writes: by the machines' own operations, without their guests. */
static void test_what_machines_write(void)
{
    static const struct mft manifest = {
        .version = MFT_VERSION, .entries = 1, .e = {{.type = MFT_RESERVED_FIRST}}};
    static const struct elf_image image = {.mft_bytes = offsetof(struct mft, e) + sizeof manifest.e[0]};
    const struct machine_plan plan = {
        .image = &image, .manifest = &manifest, .mem_bytes = M, .cmdline = "a line", .cmdline_bytes = 6};
    struct machine kvm = {.ops = &kvm_ops, .vm = &vm}, boxed = {.ops = machine_by_name("sandbox"), .vm = &vm};
    begin();
    kvm.ops->write_boot_info(&kvm, &plan);
    HOLDS(heard(1u << ENTERED_BOOT_INFO) &&
          strcmp(at(HVT_BOOT_INFO_GPA + sizeof(struct hvt_boot_info) + image.mft_bytes), "a line") == 0);
    begin();
    HOLDS(kvm.ops->write(&kvm, BUFFER, "words", 5) == 5);
    HOLDS(heard(1u << ENTERED_HOST) && told_bytes[ENTERED_HOST] == 5);
    HOLDS(memcmp(at(BUFFER), "words", 5) == 0);

    if (!boxed.ops)
        return; /* this build has no sandbox */
    /* The guest's memory belongs to another process, which shares its boot info. */
    struct sandbox *sandbox = (void *)boxed.own;
    uint8_t *const hva = vm.memory.hva;
    HOLDS(sandbox_init(sandbox, &vm, NULL) == 0);
    begin();
    vm.memory.hva = sandbox_boot_info(sandbox) - HVT_BOOT_INFO_GPA;
    boxed.ops->write_boot_info(&boxed, &plan);
    HOLDS(told == 1u << ENTERED_BOOT_INFO && !strays);
    HOLDS(memcmp(replica + HVT_BOOT_INFO_GPA, at(HVT_BOOT_INFO_GPA), START_STATE_BOOT_BYTES) == 0);
    vm.memory.hva = hva;
    HOLDS(boxed.ops->write(&boxed, BUFFER, "words", 5) < 0 && told == 1u << ENTERED_BOOT_INFO);
    sandbox_release(sandbox);
}

static void on_signal(int number)
{
    (void)number;
}

int main(void)
{
    static const struct {
        void (*test)(void);
        bool header;
    } tests[] = {
        {test_calls_without_a_device, false},
        {test_disks, false},
        {test_a_truncated_disk, false},
        {test_block_batch, false},
        {test_frames, false},
        {test_net_batch, false},
        {test_frames_with_a_header, true},
        {test_the_ring, false},
        {test_the_rings_worker, false},
        {test_segments_of_a_large_frame, true},
        {test_emulated_writes, false},
        {test_memory_as_the_image_has_it, false},
        {test_what_machines_write, false},
    };
    signal(SIGUSR1, on_signal);
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        set_up(tests[i].header);
        tests[i].test();
        tear_down();
    }
    /* Every row that takes an answer has been called in this test. */
    uint32_t rows = 0;
#define HYPERCALL(number, name, structure, access, feature, device)                                          \
    rows |= (uint32_t)((access) == GUEST_WRITABLE) << (number);
#include "hypercalls.def"
    HOLDS((rows & ~called) == 0);
    return claims_end();
}
