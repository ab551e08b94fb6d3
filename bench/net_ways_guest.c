/*
 * The guest of `python bench ways`: the cost of a frame for a guest of our library, by each of its ways.
 *
 *     net_ways_guest.elf calls|batch MODE SIZE COUNT
 *
 * calls uses net_read(), net_write() and poll_wait(). batch uses net_submit(). The guest's note decides how
 * these functions leave the guest: `python bench ways` changes the note in copies of the file. The guest has
 * the modes and the output of net_guest.c. It has two more modes, in which SIZE is the size of a packet and
 * COUNT counts packets: bulk-tx sends TCP, bulk-rx receives UDP that waits. If the device has offload, one
 * frame holds 44 packets.
 */
#include <tender/guest.h>

TENDER_MANIFEST(1, TENDER_NET("service0"));

#define BATCH         64u
#define BUFFER_BYTES  2048u
#define LARGE         16u /* frames in a batch with offload */
#define LARGE_MAX     65600u
#define HEADERS       54u
#define MERGED        44u /* packets in one frame */
#define ETHERTYPE     0x88b5
#define IPV4          0x0800
#define WARM_UP_NS    250000000u
#define WARM_UP_TX_NS 20000000u

static struct net_device net;
static uint8_t buffers[2][BATCH][BUFFER_BYTES] __attribute__((aligned(64)));
static uint8_t large[LARGE][LARGE_MAX] __attribute__((aligned(64)));

static bool is_ours(const uint8_t *frame, size_t len)
{
    const unsigned type = (unsigned)frame[12] << 8 | frame[13];
    return len > 14 && (type == ETHERTYPE || type == IPV4);
}

static void turn_around(uint8_t *frame)
{
    memcpy(frame, frame + 6, 6);
    memcpy(frame + 6, net.mac, 6);
}

static void frame_fill(uint8_t *frame, unsigned type)
{
    memset(frame, 0, 12);
    frame[0] = 2; /* the address of a station that does not exist */
    memcpy(frame + 6, net.mac, 6);
    frame[12] = (uint8_t)(type >> 8);
    frame[13] = (uint8_t)type;
}

/* ---- By the calls ---- */

static void calls_tx(size_t size, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        net_write(&net, buffers[0][0], size);
    }
}

static bool calls_rx(uint64_t count, bool echo, bool poll, bool wait)
{
    uint8_t *frame = buffers[0][0];
    for (uint64_t i = 0; i < count;) {
        size_t len;
        if (poll) {
            poll_wait(UINT64_MAX, NULL);
        }
        if (net_read(&net, frame, BUFFER_BYTES, &len) != GUEST_OK) {
            if (!wait) {
                return false;
            }
            poll_wait(UINT64_MAX, NULL);
        } else if (is_ours(frame, len)) {
            i++;
            if (echo) {
                turn_around(frame);
                net_write(&net, frame, len);
            }
        }
    }
    net_flush(&net);
    return true;
}

/* ---- By batches ---- */

static void batch_tx(size_t size, uint64_t count)
{
    struct tender_net_frame frames[BATCH];
    size_t received;
    for (uint64_t sent = 0; sent < count; sent += BATCH) {
        const uint64_t n = count - sent < BATCH ? count - sent : BATCH;
        for (uint64_t i = 0; i < n; i++) {
            frames[i] =
                (struct tender_net_frame){.data = (gpa_t)(uintptr_t)buffers[0][i], .len = (uint32_t)size};
        }
        net_submit(&net, frames, n, 0, 0, &received);
    }
}

static bool batch_rx(uint64_t count, bool echo, bool wait)
{
    struct tender_net_frame frames[2 * BATCH];
    size_t out = 0, received;
    unsigned turn = 0;
    for (uint64_t i = 0; i < count; turn ^= 1) {
        for (uint32_t j = 0; j < BATCH; j++) {
            frames[out + j] =
                (struct tender_net_frame){.data = (gpa_t)(uintptr_t)buffers[turn][j], .len = BUFFER_BYTES};
        }
        net_submit(&net, frames, out, BATCH, wait ? UINT64_MAX : 0, &received);
        if (!received && !wait) {
            return false;
        }
        const struct tender_net_frame *in = frames + out;
        size_t next = 0;
        for (size_t j = 0; j < received && i < count; j++) {
            uint8_t *frame = buffers[turn][j];
            const uint32_t len = in[j].len;
            if (!is_ours(frame, len)) {
                continue;
            }
            i++;
            if (echo) {
                turn_around(frame);
                frames[next++] = (struct tender_net_frame){.data = (gpa_t)(uintptr_t)frame, .len = len};
            }
        }
        out = next;
    }
    if (out) {
        net_submit(&net, frames, out, 0, 0, &received);
    }
    return true;
}

/* ---- Bulk, with offload ---- */

static void header_fill(uint8_t *frame, size_t len)
{
    static const uint8_t ip[20] = {0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1};
    frame_fill(frame, IPV4);
    memcpy(frame + 14, ip, sizeof(ip));
    frame[16] = (uint8_t)((len - 14) >> 8);
    frame[17] = (uint8_t)(len - 14);
    memset(frame + 34, 0, 20);
    frame[46] = 0x50;
    frame[47] = 0x10;
}

static void large_tx(size_t size, uint64_t count)
{
    const size_t payload = size - HEADERS, len = HEADERS + MERGED * payload;
    struct tender_net_frame frames[LARGE];
    size_t received;
    for (uint32_t i = 0; i < LARGE; i++) {
        header_fill(large[i], len);
    }
    for (uint64_t sent = 0; sent < count; sent += LARGE * MERGED) {
        for (uint32_t i = 0; i < LARGE; i++) {
            frames[i] = (struct tender_net_frame){.data = (gpa_t)(uintptr_t)large[i],
                                                  .len = (uint32_t)len,
                                                  .flags = TENDER_NET_NEEDS_CSUM,
                                                  .gso_type = TENDER_GSO_TCP4,
                                                  .hdr_len = HEADERS,
                                                  .gso_size = (uint16_t)payload,
                                                  .csum_start = 34,
                                                  .csum_offset = 16};
        }
        net_submit(&net, frames, LARGE, 0, 0, &received);
    }
}

static bool large_rx(uint64_t count)
{
    struct tender_net_frame frames[LARGE];
    size_t received;
    for (uint64_t got = 0; got < count;) {
        for (uint32_t i = 0; i < LARGE; i++) {
            frames[i] = (struct tender_net_frame){.data = (gpa_t)(uintptr_t)large[i], .len = LARGE_MAX};
        }
        net_submit(&net, frames, 0, LARGE, 0, &received);
        if (!received) {
            return false;
        }
        for (size_t i = 0; i < received; i++) {
            if (is_ours(large[i], frames[i].len)) {
                got += frames[i].gso_size ? frames[i].len / frames[i].gso_size : 1;
            }
        }
    }
    return true;
}

static bool measure(bool batch, const char *mode, size_t size, uint64_t count)
{
    const bool echo = strcmp(mode, "rx") != 0 && strcmp(mode, "bulk-rx") != 0;
    const bool serve = strcmp(mode, "serve") == 0, pong = strcmp(mode, "pong") == 0;
    if (strcmp(mode, "tx") == 0 || strcmp(mode, "bulk-tx") == 0) {
        if (net.offload && strcmp(mode, "bulk-tx") == 0) {
            large_tx(size, count);
        } else {
            (batch ? batch_tx : calls_tx)(size, count);
        }
        return true;
    }
    if (net.offload && !echo) {
        return large_rx(count);
    }
    return batch ? batch_rx(count, echo, pong) : calls_rx(count, echo, serve, pong);
}

int main(int argc, char **argv)
{
    uint64_t size, count;
    if (argc != 4 || !number_parse(argv[2], &size) || !number_parse(argv[3], &count) || size < 60 ||
        size > 1514 || net_open("service0", &net) != GUEST_OK) {
        panic("usage: net_ways_guest.elf calls|batch MODE SIZE COUNT");
    }
    const char *mode = argv[1];
    const bool sends = strcmp(mode, "tx") == 0 || strcmp(mode, "bulk-tx") == 0;
    const uint64_t warm_up_ns = sends ? WARM_UP_TX_NS : strcmp(mode, "pong") == 0 ? 0 : WARM_UP_NS;
    for (unsigned i = 0; i < BATCH; i++) {
        if (strcmp(mode, "bulk-tx") == 0) {
            header_fill(buffers[0][i], size);
        } else {
            frame_fill(buffers[0][i], ETHERTYPE);
        }
    }
    printf("ready\n");
    const uint64_t ready_ns = clock_monotonic();
    while (clock_monotonic() < ready_ns + warm_up_ns) {
    }
    const uint64_t begin_ns = clock_monotonic();
    if (!measure(strcmp(argv[0], "batch") == 0, mode, size, count)) {
        printf("the queue was empty too early\n");
        return 2;
    }
    printf("%s %lu %lu %lu\n", mode, size, count, clock_monotonic() - begin_ns);
    return 0;
}
