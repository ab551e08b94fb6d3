/*
 * Hypercalls that are interrupted and resumed, under libFuzzer: hypercall_resume(), and handlers
 * that wait.
 *
 * The input is u8 console (a pipe, a socket, Python), then calls: u8 number, u8 and u16 for its
 * arguments, and for each interruption u8 what happens meanwhile: 1: another signal, 2: the reader
 * takes some bytes, 4: the structure is changed, as by a frame that is read into it (u8 word, u64).
 *
 * However often a call is interrupted, and whatever its structure contains by then, the call does
 * its work once. All bytes go out in order. A disk or memory has all bytes. Each frame and each
 * flush is done once. A deadline stays the same.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../native/devices.h"
#include "console.h"
#include "guarded_memory.h"
#include "hypercall.h"
#include "must.h"
#include "runner.h"

#define M           0x400000u
#define OPEN        0x100000u /* the guest may write from here on */
#define STRUCTURE   0x3f0000u
#define ARRAY       0x3f1000u
#define BUFFER      0x3f8000u /* destination of reads */
#define DISK_BYTES  0x400000u
#define CALLS_MAX   16u
#define RESUMES_MAX 4096u

enum { TO_PIPE, TO_SOCKET, TO_PYTHON };

static struct vm vm;
static int wire, reader, console, disk;
static volatile sig_atomic_t pending;
static const uint8_t *disk_bytes;
static struct {
    uint32_t number, frames, reads;
    uint64_t bytes;  /* of a puts or a transfer */
    gpa_t next, end; /* of a puts: what is still to be written */
    gpa_t data;      /* of a transfer */
    uint64_t offset;
} call;

static void on_signal(int number)
{
    (void)number;
    pending = 0;
}

static void interrupt(void)
{
    if (!pending) {
        pending = 1;
        (void)raise(SIGUSR1);
    }
}

static void set_up(void)
{
    int net[2];
    memset(&vm, 0, sizeof vm);
    MUST(vm_init(&vm) == 0 && signal(SIGUSR1, on_signal) != SIG_ERR);
    MUST(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, net) == 0);
    wire = net[1];
    guarded_memory(&vm, M);
    guest_memory_ranges_set(&vm.memory);
    for (uint32_t i = 0; i < M; i++)
        vm.memory.hva[i] = (uint8_t)(i * 2654435761u >> 24);
    disk = memfd_create("disk", 0);
    MUST(ftruncate(disk, DISK_BYTES) == 0);
    disk_bytes = mmap(NULL, DISK_BYTES, PROT_READ, MAP_SHARED, disk, 0);
    MUST(disk_bytes != MAP_FAILED);
    for (uint32_t i = 0; i < DISK_BYTES; i += 512)
        MUST(pwrite(disk, &i, sizeof i, i) == sizeof i);
    vm.devices[1] = net_on(net[0], (struct net_device){.is_socket = true});
    vm.devices[2] = disk_on(disk, (struct disk){.capacity = DISK_BYTES});
    vm.device_end = 3;
    vm.count_of[MFT_NET_BASIC] = vm.count_of[MFT_BLOCK_BASIC] = 1;
    vm.extensions = TENDER_FEATURE_BLOCK_BATCH | TENDER_FEATURE_NET_BATCH;
}

static void open_console(unsigned how)
{
    int ends[2];
    reader = -1;
    console = -1;
    if (how == TO_PYTHON) {
        MUST(console_set(&vm, CONSOLE_PYTHON) == 0);
        return;
    }
    if (how == TO_PIPE) {
        MUST(pipe2(ends, O_CLOEXEC) == 0 && fcntl(ends[1], F_SETPIPE_SZ, 4096) == 4096);
    } else {
        const int small = 4096;
        MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
        MUST(setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof small) == 0);
    }
    reader = ends[0];
    console = ends[1];
    MUST(console_set(&vm, console) == 0);
}

/* The reader takes up to `most` bytes. They must be the next bytes that the guest wrote. */
static void take_console(size_t most)
{
    static uint8_t bytes[0x10000];
    while (reader >= 0 && most) {
        struct pollfd some = {reader, POLLIN, 0};
        if (poll(&some, 1, 0) != 1)
            return;
        const ssize_t got = read(reader, bytes, most < sizeof bytes ? most : sizeof bytes);
        MUST(got > 0);
        MUST(call.number == HVT_HYPERCALL_PUTS && (uint64_t)got <= call.end - call.next);
        MUST(memcmp(bytes, vm.memory.hva + call.next, (size_t)got) == 0);
        call.next += (uint64_t)got;
        most -= (size_t)got;
    }
}

static void take_frames(void)
{
    uint8_t frame[128];
    while (recv(wire, frame, sizeof frame, 0) >= 0)
        call.frames++;
}

static void check_piece(void)
{
    const struct vm_event *event = &vm.shared->event;
    MUST(event->gpa <= M && event->len <= M - event->gpa && event->len <= CONSOLE_PIECE_MAX);
    MUST(event->gpa == call.next && event->len <= call.end - call.next);
    call.next += event->len;
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

static void meanwhile(const uint8_t **data, size_t *size)
{
    uint8_t what, word;
    uint64_t value;
    if (!take(data, size, &what, 1))
        what = 2;
    if (what & 2)
        take_console(what == 2 ? SIZE_MAX : 1u + what * 16u);
    if (what & 4 && take(data, size, &word, 1) && take(data, size, &value, 8)) {
        if (value % 2) /* near a valid value, more often than by chance */
            value = value / 2 % M;
        memcpy(vm.memory.hva + STRUCTURE + word % 6 * 8, &value, 8);
    }
    if (what & 1)
        interrupt();
}

/* Fills in the structure, and the array of a batch. Returns how many flushes, or frames to send, it
 * contains. */
static uint32_t put_call(uint8_t how, uint16_t argument)
{
    uint8_t *structure = vm.memory.hva + STRUCTURE, *array = vm.memory.hva + ARRAY;
    uint32_t count = how % 8, flushes = 0;
    memset(structure, 0, 64);
    switch (call.number) {
    case HVT_HYPERCALL_PUTS: {
        struct hvt_puts puts = {OPEN + argument * 16u, how < 0x80 ? how * 8u : (how & 0x7fu) << 14};
        if (puts.len > M - puts.data)
            puts.len = M - puts.data;
        if (reader >= 0 && puts.len > 0x10000)
            puts.len = 0x10000;
        memcpy(structure, &puts, sizeof puts);
        call.bytes = puts.len;
        call.next = puts.data;
        call.end = puts.data + puts.len;
        return 0;
    }
    case HVT_HYPERCALL_BLOCK_READ:
    case HVT_HYPERCALL_BLOCK_WRITE:
        call.bytes = how < 0xf0 ? how * 512u : (how & 7u) << 19;
        call.data = OPEN + argument;
        if (call.bytes > STRUCTURE - call.data)
            call.bytes = STRUCTURE - call.data;
        call.offset = argument % 8 * 512u;
        memcpy(structure, &(struct hvt_block_read){2, call.offset, call.data, call.bytes, 0}, 40);
        return 0;
    case HVT_HYPERCALL_POLL:
        memcpy(structure, &(struct hvt_poll){.timeout_nsecs = how * 256u}, sizeof(struct hvt_poll));
        return 0;
    case TENDER_HYPERCALL_BLOCK_BATCH:
        for (uint32_t i = 0; i < count; i++) {
            struct tender_block_request request = {.op = 1 + (argument >> 2 * i) % 4,
                                                   .handle = 2,
                                                   .offset = i * 512u,
                                                   .data = BUFFER,
                                                   .len = 512};
            flushes += request.op == TENDER_BLOCK_FLUSH;
            call.reads += request.op == TENDER_BLOCK_READ;
            memcpy(array + i * sizeof request, &request, sizeof request);
        }
        memcpy(structure, &(struct tender_block_batch){.requests = ARRAY, .count = count}, 24);
        return flushes;
    default:
        count %= 4;
        for (uint32_t i = 0; i < count + how / 8 % 4; i++) {
            struct tender_net_frame frame = {.data = i < count ? OPEN + argument : BUFFER, .len = 60};
            memcpy(array + i * sizeof frame, &frame, sizeof frame);
        }
        memcpy(structure,
               &(struct tender_net_batch){.handle = 1,
                                          .frames = ARRAY,
                                          .tx_count = count,
                                          .rx_count = how / 8 % 4,
                                          .timeout_ns = argument},
               48);
        return count;
    }
}

static void make_call(uint8_t number, uint8_t how, uint16_t argument, const uint8_t **data, size_t *size)
{
    static const uint8_t numbers[] = {HVT_HYPERCALL_PUTS,           HVT_HYPERCALL_POLL,
                                      TENDER_HYPERCALL_BLOCK_BATCH, TENDER_HYPERCALL_NET_BATCH,
                                      HVT_HYPERCALL_BLOCK_READ,     HVT_HYPERCALL_BLOCK_WRITE};
    const struct vm_counters before = vm.shared->counters;
    struct vm_event *event = &vm.shared->event;
    memset(&call, 0, sizeof call);
    call.number = numbers[number % 8 % 6];
    const uint32_t asked = put_call(how, argument);
    if (number & 0x40)
        (void)send(wire, "a frame that waits for the guest's turn, and is longer", 50, 0);
    if (number & 0x80 || reader >= 0) /* otherwise the call would wait for a full console */
        interrupt();
    event->kind = EVENT_NONE;
    enum verdict verdict = hypercall(&vm, call.number, STRUCTURE);
    uint64_t deadline_ns = vm.resume.poll_deadline_ns;
    unsigned resumes = 0;
    for (; verdict == EXIT && resumes < RESUMES_MAX; resumes++) {
        if (event->kind == EVENT_CONSOLE)
            check_piece();
        else if (event->kind != EVENT_INTERRUPTED)
            break;
        MUST(event->kind != EVENT_INTERRUPTED || (!pending && vm.resume.number == call.number));
        meanwhile(data, size);
        if (call.number == HVT_HYPERCALL_PUTS && reader >= 0)
            interrupt();
        event->kind = EVENT_NONE;
        verdict = hypercall_resume(&vm);
        MUST(!deadline_ns || vm.resume.poll_deadline_ns == deadline_ns);
        deadline_ns = vm.resume.poll_deadline_ns;
    }
    take_console(SIZE_MAX);
    take_frames();
    const struct vm_counters *now = &vm.shared->counters;
    MUST(resumes < RESUMES_MAX && verdict == CONTINUE && event->kind == EVENT_NONE);
    MUST(!vm.resume.number && hypercall_resume(&vm) == CONTINUE && event->kind == EVENT_NONE);
    MUST(call.next == call.end && now->console_lost_bytes == before.console_lost_bytes);
    if (call.number == HVT_HYPERCALL_PUTS)
        MUST(now->console_bytes - before.console_bytes == call.bytes);
    if (call.number == HVT_HYPERCALL_BLOCK_READ || call.number == HVT_HYPERCALL_BLOCK_WRITE)
        MUST(memcmp(vm.memory.hva + call.data, disk_bytes + call.offset, call.bytes) == 0);
    MUST(now->block_read_bytes - before.block_read_bytes ==
         (call.number == HVT_HYPERCALL_BLOCK_READ ? call.bytes : call.reads * 512));
    if (call.number == TENDER_HYPERCALL_BLOCK_BATCH)
        MUST(now->block_flushes - before.block_flushes == asked);
    if (call.number == TENDER_HYPERCALL_NET_BATCH)
        MUST(call.frames == asked && now->net_tx_packets - before.net_tx_packets == asked);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t how, head[2], drop[128];
    uint16_t argument;
    sigset_t saved;
    if (!vm.memory.hva)
        set_up();
    if (!take(&data, &size, &how, 1))
        return 0;
    open_console(how % 3);
    vm_enter(&vm, &saved);
    for (unsigned i = 0; i < CALLS_MAX && take(&data, &size, head, 2) && take(&data, &size, &argument, 2);
         i++)
        make_call(head[0], head[1], argument, &data, &size);
    vm_leave(&vm, &saved);
    MUST(!pending);
    while (recv(vm.devices[1].fd, drop, sizeof drop, 0) >= 0)
        ;
    if (reader >= 0) {
        close(reader);
        close(console);
    }
    return 0;
}
