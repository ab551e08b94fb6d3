/*
 * Frames with a net header under libFuzzer, as a TAP with IFF_VNET_HDR delivers and accepts them:
 * send_headed(), read_headed() and complete_checksum() of net_frame.c, by single calls and by
 * batches.
 *
 * The input is u8 offload, u8 features, then steps: u8 what, u16 where, u8 length, 10 bytes of
 * header. Each step puts a frame on the wire, or is a call of the guest.
 *
 * A model does the same to a copy of the guest's memory, with its own checksum code. After each
 * call the two memories are equal, and so are the counters, the answers, and the output at the
 * other end.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "../native/devices.h"
#include "guarded_memory.h"
#include "must.h"
#include "net_frame.h"
#include "runner.h"

#define OPEN        0x100000u /* the guest may write from here on */
#define OPEN_BYTES  0x8000u
#define M           (OPEN + OPEN_BYTES)
#define STRUCTURE   (OPEN + 0x7000u)
#define FRAMES      (OPEN + 0x7100u)
#define HEADER      10u
#define QUEUE_MAX   6u
#define FRAME_BYTES 2048u
#define STEPS_MAX   48u

static struct vm vm;
static int wire;
static uint8_t model[OPEN_BYTES]; /* the guest's memory from OPEN on */
static struct {
    uint32_t queued;
    size_t lens[QUEUE_MAX];
    uint8_t frames[QUEUE_MAX][HEADER + FRAME_BYTES]; /* frames on their way to the guest */
    struct vm_counters counters;
} on;

static void set_up(void)
{
    int net[2];
    memset(&vm, 0, sizeof vm);
    MUST(vm_init(&vm) == 0 && socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, net) == 0);
    wire = net[1];
    guarded_memory(&vm, M);
    guest_memory_ranges_set(&vm.memory);
    vm.devices[1] = net_on(net[0], (struct net_device){.has_header = true});
    vm.device_end = 2;
    vm.count_of[MFT_NET_BASIC] = 1;
}

/* ---- the model */

/* RFC 1071 byte by byte. Each carry is added immediately. */
static uint16_t checksum(const uint8_t *data, size_t len)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < len; i++) {
        sum += i % 2 ? data[i] : (uint32_t)data[i] << 8;
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return sum == 0xffff ? 0xffff : (uint16_t)(sum ^ 0xffff);
}

static bool header_is_taken(const struct net_header *header, uint64_t len)
{
    const uint32_t offload = net_of(&vm.devices[1])->offload;
    const bool sums = header->flags & 1;
    if (header->flags > 3 || header->hdr_len > len || (sums && !(offload & 1)) ||
        (sums && header->csum_start + header->csum_offset + 2u > len))
        return false;
    switch (header->gso_type) {
    case 0:
        return true;
    case 1:
    case 0x81:
        return sums && header->gso_size && offload & 2;
    case 4:
    case 0x84:
        return sums && header->gso_size && offload & 4;
    case 5:
        return sums && header->gso_size && offload & 8;
    default:
        return false;
    }
}

/* Models a send. Returns the answer, and compares the sent bytes immediately. `asked` NULL: a plain
 * frame. */
static int32_t model_send(const uint8_t *data, uint64_t len, const struct net_header *asked)
{
    static uint8_t left[HEADER + FRAME_BYTES * 4];
    struct net_header expected = {0};
    if (asked && !header_is_taken(asked, len))
        return HVT_R_EINVAL;
    if (asked)
        expected = *asked;
    expected.flags &= 1;
    MUST(recv(wire, left, sizeof left, 0) == (ssize_t)(HEADER + len));
    MUST(memcmp(left, &expected, HEADER) == 0 && memcmp(left + HEADER, data, len) == 0);
    on.counters.net_tx_packets++;
    on.counters.net_tx_bytes += len;
    return HVT_R_OK;
}

/* Models a receive into model memory. Returns the frame's length, or 0 if there is no frame. */
static uint64_t model_receive(uint8_t *data, uint64_t capacity, struct net_header *header)
{
    while (capacity && on.queued) {
        struct net_header own;
        const size_t got = on.lens[0], len = got > HEADER ? got - HEADER : 0;
        uint8_t *frame = on.frames[0];
        memcpy(&own, frame, HEADER);
        memcpy(data, frame + HEADER, len < capacity ? len : capacity); /* also of a dropped frame */
        bool taken = len && len <= capacity && (header || !own.gso_type);
        if (taken && !header && own.flags & 1) {
            const uint32_t at = (uint32_t)own.csum_start + own.csum_offset;
            taken = at + 2 <= len;
            if (taken) {
                const uint16_t sum = checksum(data + own.csum_start, len - own.csum_start);
                data[at] = (uint8_t)(sum >> 8);
                data[at + 1] = (uint8_t)sum;
            }
        }
        on.queued--;
        memmove(on.lens, on.lens + 1, sizeof on.lens - sizeof *on.lens);
        memmove(on.frames, on.frames + 1, sizeof on.frames - sizeof *on.frames);
        if (!taken) {
            on.counters.net_rx_drops++;
            continue;
        }
        if (header)
            *header = own;
        on.counters.net_rx_packets++;
        on.counters.net_rx_bytes += len;
        return len;
    }
    return 0;
}

/* ---- the steps */

struct step {
    uint8_t what;
    uint8_t where[2];
    uint8_t len;
    struct net_header header;
};

/* Lengths below and above those of headers and of a frame. */
static uint32_t length_of(const struct step *step)
{
    return step->len < 200 ? step->len : (step->len - 199u) * 36u;
}

/* An address below the structures, with space after it for any frame. */
static gpa_t place_of(const struct step *step)
{
    return OPEN + (step->where[0] | (unsigned)step->where[1] << 8) % 0x5000u;
}

static void put(gpa_t gpa, const void *from, size_t bytes)
{
    memcpy(vm.memory.hva + gpa, from, bytes);
    memcpy(model + (gpa - OPEN), from, bytes);
}

static void put_on_wire(const struct step *step)
{
    if (on.queued == QUEUE_MAX)
        return;
    uint8_t *frame = on.frames[on.queued];
    size_t len = HEADER + length_of(step);
    memcpy(frame, &step->header, HEADER);
    for (size_t i = HEADER; i < len; i++)
        frame[i] = (uint8_t)(step->where[0] * i + step->where[1]);
    if (step->where[0] == 0xff) /* the wire ends within a header */
        len = 1 + step->len % HEADER;
    on.lens[on.queued++] = len;
    MUST(send(wire, frame, len, 0) == (ssize_t)len);
}

static void call(uint32_t number)
{
    vm.shared->event.kind = EVENT_NONE;
    MUST(hypercall(&vm, number, STRUCTURE) == CONTINUE && vm.shared->event.kind == EVENT_NONE);
    on.counters.hypercalls[number]++;
}

static void write_frame(const struct step *step)
{
    struct hvt_net_write write = {1, place_of(step), length_of(step), 99};
    put(STRUCTURE, &write, sizeof write);
    call(HVT_HYPERCALL_NET_WRITE);
    write.ret = model_send(model + (write.data - OPEN), write.len, NULL);
    memcpy(model + (STRUCTURE - OPEN), &write, sizeof write);
}

static void read_frame(const struct step *step)
{
    struct hvt_net_read read = {1, place_of(step), length_of(step), 99};
    put(STRUCTURE, &read, sizeof read);
    call(HVT_HYPERCALL_NET_READ);
    const uint64_t len = model_receive(model + (read.data - OPEN), read.len, NULL);
    read.ret = len ? HVT_R_OK : HVT_R_AGAIN;
    read.len = len ? len : read.len;
    memcpy(model + (STRUCTURE - OPEN), &read, sizeof read);
}

/* Up to two frames out and two in, at addresses 64 bytes apart, with the header of the step. */
static void make_batch(const struct step *step)
{
    const bool offloads = vm.extensions & TENDER_FEATURE_NET_OFFLOAD;
    struct tender_net_frame frames[4];
    struct tender_net_batch batch = {
        .handle = 1, .frames = FRAMES, .tx_count = step->what / 8 % 3, .rx_count = step->what / 32 % 3};
    for (uint32_t i = 0; i < 4; i++) {
        frames[i] =
            (struct tender_net_frame){.data = place_of(step) + i * 64u, .len = length_of(step), .ret = 99};
        memcpy(&frames[i].flags, &step->header, HEADER);
    }
    put(FRAMES, frames, sizeof frames);
    put(STRUCTURE, &batch, sizeof batch);
    call(TENDER_HYPERCALL_NET_BATCH);
    for (uint32_t i = 0; i < batch.tx_count; i++)
        frames[i].ret =
            model_send(model + (frames[i].data - OPEN), frames[i].len, offloads ? &step->header : NULL);
    for (uint32_t i = batch.tx_count; i < batch.tx_count + batch.rx_count; i++) {
        struct net_header header = {0};
        const uint64_t len =
            model_receive(model + (frames[i].data - OPEN), frames[i].len, offloads ? &header : NULL);
        if (!len)
            break;
        frames[i].len = (uint32_t)len;
        frames[i].ret = HVT_R_OK;
        if (offloads)
            memcpy(&frames[i].flags, &header, HEADER);
        batch.rx_done++;
    }
    batch.tx_done = batch.tx_count;
    batch.offload = net_of(&vm.devices[1])->offload;
    batch.ret = HVT_R_OK;
    on.counters.net_batches++;
    memcpy(model + (FRAMES - OPEN), frames, sizeof frames);
    memcpy(model + (STRUCTURE - OPEN), &batch, sizeof batch);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct step step;
    uint8_t drop[1];
    sigset_t saved;
    if (!vm.memory.hva)
        set_up();
    if (size < 2)
        return 0;
    memset(&on, 0, sizeof on);
    vm.shared->counters = (struct vm_counters){0};
    net_of(&vm.devices[1])->gone = net_of(&vm.devices[1])->drained = false;
    net_of(&vm.devices[1])->offload = data[0] & 15;
    vm.extensions = TENDER_FEATURE_NET_BATCH | (data[1] & 1 ? TENDER_FEATURE_NET_OFFLOAD : 0);
    for (uint32_t i = 0; i < OPEN_BYTES; i++)
        model[i] = (uint8_t)(i * 2654435761u >> 24);
    memcpy(vm.memory.hva + OPEN, model, OPEN_BYTES);
    vm_enter(&vm, &saved);
    data += 2;
    size -= 2;
    for (unsigned i = 0; i < STEPS_MAX && size >= sizeof step; i++) {
        memcpy(&step, data, sizeof step);
        data += sizeof step;
        size -= sizeof step;
        switch (step.what % 4) {
        case 0:
            put_on_wire(&step);
            break;
        case 1:
            write_frame(&step);
            break;
        case 2:
            read_frame(&step);
            break;
        default:
            make_batch(&step);
        }
        MUST(memcmp(vm.memory.hva + OPEN, model, OPEN_BYTES) == 0);
        MUST(memcmp(&vm.shared->counters, &on.counters, sizeof on.counters) == 0);
        MUST(recv(wire, drop, sizeof drop, 0) < 0 && errno == EAGAIN); /* nothing else was sent */
    }
    vm_leave(&vm, &saved);
    while (recv(vm.devices[1].fd, drop, sizeof drop, 0) >= 0)
        ;
    for (uint32_t i = 0; i < 16; i++) /* nobody may write the low megabyte */
        MUST(vm.memory.hva[i * 0x10000u] == 0);
    return 0;
}
