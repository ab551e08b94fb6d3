/*
 * Frames with work left to the other side: checksums, and many packets in one frame. The guest is
 * 10.0.0.2, the host is 10.0.0.1 with the MAC of --mac. Both use port 7000 of UDP and TCP. Payload
 * byte i is (i * 7 + i / 256) modulo 256.
 *
 *     net_offload udp  [--size=1400] [--count=1]   one frame that stands for COUNT datagrams of SIZE bytes
 *     net_offload tcp  [--count=30000]             connects and sends COUNT bytes in one frame
 *     net_offload take [--count=N]                 receives frames until N payload bytes have come
 *     net_offload read [--count=N]                 the same by net_read() and poll_wait()
 *     net_offload lies                             sends headers that must be refused, and counts the answers
 *     net_offload stream [--frames=N]              like udp, N times; each datagram has its number, and at
 *                                                  its end a product of that number
 *     net_offload sink                             receives such datagrams up to number 2^64 - 1
 *
 * The last two end with "net_offload: datagrams N reordered N lost N broken N frames N". The guest
 * begins with "net_offload: offload N". take prints one line per frame. A wrong byte or checksum
 * ends with status 1.
 */
#include <tender/guest.h>

TENDER_MANIFEST(1, TENDER_NET("service0"));
TENDER_EXTENSION_NOTE(TENDER_FEATURE_GATE | TENDER_FEATURE_NET_BATCH | TENDER_FEATURE_NET_OFFLOAD);

#define IP           14u
#define L4           34u
#define UDP_DATA     42u
#define TCP_DATA     54u
#define PORT         7000u
#define UDP          17u
#define TCP          6u
#define BUFFER_BYTES 65600u
#define BUFFERS      8u

static struct net_device net;
static uint8_t host_mac[6], out[BUFFER_BYTES], buffers[BUFFERS][BUFFER_BYTES];

static uint32_t get16(const uint8_t *at)
{
    return (uint32_t)at[0] << 8 | at[1];
}

static void put16(uint8_t *at, size_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void put32(uint8_t *at, uint32_t value)
{
    put16(at, value >> 16);
    put16(at + 2, value & 0xffff);
}

static uint32_t get32(const uint8_t *at)
{
    return get16(at) << 16 | get16(at + 2);
}

static uint32_t sum_of(const uint8_t *bytes, size_t len, uint32_t sum)
{
    for (size_t i = 0; i < len; i++) {
        sum += i % 2 ? bytes[i] : (uint32_t)bytes[i] << 8;
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return sum;
}

/* The sum of addresses, protocol and length, which stands in the place of a partial checksum. */
static uint32_t pseudo_sum(const uint8_t *frame, size_t len)
{
    uint32_t sum = sum_of(frame + IP + 12, 8, frame[IP + 9] + (uint32_t)(len - L4));
    return (sum & 0xffff) + (sum >> 16);
}

static uint8_t pattern(size_t i)
{
    return (uint8_t)(i * 7 + i / 256);
}

/* Makes a frame with `bytes` of payload for the host. Its checksum is left to the system that sends
 * it on. */
static struct tender_net_frame frame_make(uint8_t protocol, size_t header, size_t bytes, size_t gso_size)
{
    const size_t len = header + bytes;
    memset(out, 0, header);
    memcpy(out, host_mac, 6);
    memcpy(out + 6, net.mac, 6);
    put16(out + 12, 0x0800);
    out[IP] = 0x45;
    put16(out + IP + 2, len - IP);
    out[IP + 8] = 64;
    out[IP + 9] = protocol;
    put32(out + IP + 12, 0x0a000002);
    put32(out + IP + 16, 0x0a000001);
    put16(out + IP + 10, ~sum_of(out + IP, 20, 0) & 0xffff);
    put16(out + L4, PORT);
    put16(out + L4 + 2, PORT);
    for (size_t i = 0; i < bytes; i++) {
        out[header + i] = pattern(i);
    }
    const uint16_t offset = protocol == UDP ? 6 : 16;
    if (protocol == UDP) {
        put16(out + L4 + 4, len - L4);
    }
    put16(out + L4 + offset, pseudo_sum(out, len));
    return (struct tender_net_frame){.data = (gpa_t)(uintptr_t)out,
                                     .len = (uint32_t)len,
                                     .flags = TENDER_NET_NEEDS_CSUM,
                                     .gso_type = bytes <= gso_size ? TENDER_GSO_NONE
                                                 : protocol == UDP ? TENDER_GSO_UDP
                                                                   : TENDER_GSO_TCP4,
                                     .hdr_len = (uint16_t)header,
                                     .gso_size = bytes <= gso_size ? 0 : (uint16_t)gso_size,
                                     .csum_start = L4,
                                     .csum_offset = offset};
}

static int32_t frame_send(struct tender_net_frame frame)
{
    size_t received;
    if (net_submit(&net, &frame, 1, 0, 0, &received) != GUEST_OK) {
        panic("net_offload: refused");
    }
    return frame.ret;
}

/* ---- TCP, only as much as needed to send one frame ---- */

static struct tender_net_frame segment(uint8_t flags, uint32_t sequence, uint32_t acknowledged, size_t bytes)
{
    struct tender_net_frame frame = frame_make(TCP, TCP_DATA, bytes, 1448);
    put32(out + L4 + 4, sequence);
    put32(out + L4 + 8, acknowledged);
    out[L4 + 12] = 0x50;
    out[L4 + 13] = flags;
    put16(out + L4 + 14, 65535);
    return frame;
}

static void tcp(size_t bytes)
{
    frame_send(segment(0x02, 1000, 0, 0));
    for (;;) {
        size_t received;
        struct tender_net_frame in = {.data = (gpa_t)(uintptr_t)buffers[0], .len = BUFFER_BYTES};
        net_submit(&net, &in, 0, 1, UINT64_MAX, &received);
        if (received && get16(buffers[0] + 12) == 0x0800 && buffers[0][IP + 9] == TCP &&
            (buffers[0][L4 + 13] & 0x12) == 0x12) {
            break;
        }
    }
    const uint32_t next = get32(buffers[0] + L4 + 4) + 1;
    printf("net_offload: sent %d\n", frame_send(segment(0x18, 1001, next, bytes)));
}

/* ---- Receiving ---- */

static size_t taken;

/* Returns the number of payload bytes in a UDP frame for us, or 0 for any other frame. */
static size_t payload_of(const uint8_t *frame, size_t len, bool partial)
{
    if (len < UDP_DATA || get16(frame + 12) != 0x0800 || frame[IP + 9] != UDP ||
        get16(frame + L4 + 2) != PORT) {
        return 0;
    }
    const size_t end = IP + get16(frame + IP + 2);
    if (end > len) {
        panic("net_offload: cut");
    }
    const uint32_t sum =
        partial ? get16(frame + L4 + 6) : sum_of(frame + L4, end - L4, pseudo_sum(frame, end));
    if (sum != (partial ? pseudo_sum(frame, end) : 0xffff)) {
        printf("net_offload: wrong sum %x of %zu bytes, partial %d\n", sum, len, partial);
        guest_exit(1);
    }
    return end - UDP_DATA;
}

/* The same for a frame whose bytes continue where the last frame's bytes ended. */
static size_t frame_take(const uint8_t *frame, size_t len, bool partial)
{
    const size_t bytes = payload_of(frame, len, partial);
    for (size_t i = 0; i < bytes; i++) {
        if (frame[UDP_DATA + i] != pattern(taken)) {
            printf("net_offload: wrong byte %zu\n", taken);
            guest_exit(1);
        }
        taken++;
    }
    return bytes;
}

static void take(size_t count)
{
    while (taken < count) {
        struct tender_net_frame in[BUFFERS];
        size_t received;
        for (uint32_t i = 0; i < BUFFERS; i++) {
            in[i] = (struct tender_net_frame){.data = (gpa_t)(uintptr_t)buffers[i], .len = BUFFER_BYTES};
        }
        net_submit(&net, in, 0, BUFFERS, UINT64_MAX, &received);
        for (size_t i = 0; i < received; i++) {
            size_t bytes = frame_take(buffers[i], in[i].len, in[i].flags & TENDER_NET_NEEDS_CSUM);
            if (bytes) {
                printf("net_offload: took %zu flags %u gso %u size %u\n", bytes, in[i].flags, in[i].gso_type,
                       in[i].gso_size);
            }
        }
    }
}

static void take_plain(size_t count)
{
    size_t len;
    while (taken < count) {
        while (net_read(&net, buffers[0], BUFFER_BYTES, &len) == GUEST_OK) {
            frame_take(buffers[0], len, false);
        }
        if (taken < count) {
            poll_wait(UINT64_MAX, NULL);
        }
    }
    printf("net_offload: read %zu\n", taken);
}

/* ---- Many numbered datagrams ---- */

#define FACTOR 0x9e3779b97f4a7c15u
#define LAST   UINT64_MAX

static uint64_t datagrams, expected, reordered, lost, broken, frames;

static void say_numbered(void)
{
    printf("net_offload: datagrams %lu reordered %lu lost %lu broken %lu frames %lu\n", datagrams, reordered,
           lost, broken, frames);
}

static void stream(size_t size, size_t count, uint64_t many)
{
    const struct tender_net_frame frame = frame_make(UDP, UDP_DATA, size * count, size);
    for (; frames < many; frames++) {
        for (size_t i = 0; i < count; i++, datagrams++) {
            const uint64_t product = datagrams * FACTOR;
            memcpy(out + UDP_DATA + i * size, &datagrams, 8);
            memcpy(out + UDP_DATA + (i + 1) * size - 8, &product, 8);
        }
        broken += frame_send(frame) != GUEST_OK;
    }
    say_numbered();
}

/* Returns false for the last datagram. */
static bool datagram_check(const uint8_t *data, size_t len)
{
    uint64_t number = 0, product = 1;
    if (len >= 16) {
        memcpy(&number, data, 8);
        memcpy(&product, data + len - 8, 8);
    }
    if (number == LAST) {
        return false;
    }
    datagrams++;
    broken += product != number * FACTOR;
    reordered += number < expected;
    lost += number > expected ? number - expected : 0;
    expected = number + 1;
    return true;
}

static void sink(void)
{
    for (bool over = false; !over;) {
        struct tender_net_frame in[BUFFERS];
        size_t received;
        for (uint32_t i = 0; i < BUFFERS; i++) {
            in[i] = (struct tender_net_frame){.data = (gpa_t)(uintptr_t)buffers[i], .len = BUFFER_BYTES};
        }
        net_submit(&net, in, 0, BUFFERS, UINT64_MAX, &received);
        for (size_t i = 0; i < received; i++) {
            const size_t bytes = payload_of(buffers[i], in[i].len, in[i].flags & TENDER_NET_NEEDS_CSUM);
            const size_t each = in[i].gso_type ? in[i].gso_size : bytes;
            frames += bytes != 0;
            for (size_t at = 0; at < bytes && !over; at += each) {
                over = !datagram_check(buffers[i] + UDP_DATA + at, bytes - at < each ? bytes - at : each);
            }
        }
    }
    say_numbered();
}

/* ---- False headers ---- */

static void lies(void)
{
    const struct tender_net_frame good = frame_make(UDP, UDP_DATA, 3000, 1000);
    struct tender_net_frame bad[16];
    size_t received, count = 0, refused = 0;
    for (; count < 16; count++) {
        bad[count] = good;
    }
    bad[0].flags = 0x81;
    bad[1].flags = 0;         /* many packets, but no checksum */
    bad[2].csum_start = 3041; /* the checksum's last byte is past the end */
    bad[3].csum_start = bad[3].csum_offset = 0xffff;
    bad[4].gso_size = 0;
    bad[5].gso_type = 2;
    bad[6].gso_type = 3; /* virtio's UFO */
    bad[7].gso_type = TENDER_GSO_UDP | TENDER_GSO_ECN;
    bad[8].gso_type = 0x7f;
    bad[9].gso_type = TENDER_GSO_ECN;
    bad[10].hdr_len = 0xffff;
    bad[11].len = 41; /* shorter than its headers */
    bad[12].gso_type = 6;
    bad[13].flags = 4;
    bad[14].len = 0;
    bad[15].len = 1u << 20;
    net_submit(&net, bad, count, 0, 0, &received);
    for (size_t i = 0; i < count; i++) {
        refused += bad[i].ret == GUEST_EINVAL;
        if (bad[i].ret != GUEST_EINVAL) {
            printf("net_offload: lie %zu: %d\n", i, bad[i].ret);
        }
    }
    printf("net_offload: refused %zu of %zu\n", refused, count);
    /* Each is valid in itself, but makes no sense to the host's kernel: dropped and counted, and
     * nothing ends. */
    struct tender_net_frame odd[4] = {good, good, good, good};
    odd[0].gso_size = 1;
    odd[1].gso_type = TENDER_GSO_TCP4; /* although it is a UDP frame */
    odd[2].gso_type = TENDER_GSO_TCP6;
    odd[3].csum_start = 0;
    net_submit(&net, odd, 4, 0, 0, &received);
    for (size_t i = 0; i < 4; i++) {
        if (odd[i].ret != GUEST_OK && odd[i].ret != GUEST_EINVAL) {
            printf("net_offload: odd %zu: %d\n", i, odd[i].ret);
        }
    }
    printf("net_offload: good %d\n", frame_send(good));
}

static void mac_parse(const char *text)
{
    for (size_t i = 0; text && i < 6; i++) {
        char digits[] = {'0', 'x', text[3 * i], text[3 * i + 1], 0};
        uint64_t value = 0;
        if (!number_parse(digits, &value)) {
            panic("net_offload: --mac=%s", text);
        }
        host_mac[i] = (uint8_t)value;
    }
}

int main(int argc, char **argv)
{
    uint64_t size = 1400, count = 1, many = 1;
    if (net_open("service0", &net) != GUEST_OK) {
        panic("net_offload: no network device service0");
    }
    mac_parse(args_value(argc, argv, "--mac="));
    number_parse(args_value(argc, argv, "--size="), &size);
    number_parse(args_value(argc, argv, "--count="), &count);
    printf("net_offload: offload %u\n", net.offload);
    if (args_has(argc, argv, "udp")) {
        printf("net_offload: sent %d\n", frame_send(frame_make(UDP, UDP_DATA, size * count, size)));
    } else if (args_has(argc, argv, "stream")) {
        number_parse(args_value(argc, argv, "--frames="), &many);
        stream(size, count, many);
    } else if (args_has(argc, argv, "sink")) {
        sink();
    } else if (args_has(argc, argv, "tcp")) {
        tcp(count);
    } else if (args_has(argc, argv, "take")) {
        take(count);
    } else if (args_has(argc, argv, "read")) {
        take_plain(count);
    } else {
        lies();
    }
    return 0;
}
