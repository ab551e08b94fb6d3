/* A sequence of segments of one TCP connection as frames, with checksums that are computed byte by
 * byte. */
#ifndef TENDER_TCP_FRAMES_H
#define TENDER_TCP_FRAMES_H

#include <stdint.h>
#include <string.h>

#define IP       14u
#define TCP      34u
#define FRAME    2048u
#define SEGMENTS 64u
#define PSH      0x08
#define ACK      0x10
#define OPTIONS  12u /* two NOPs and a time stamp */
#define HEAD     (TCP + 20 + OPTIONS)
#define FLAGS_AT (TCP + 13)
#define SEQ_AT   (TCP + 4)
#define DF       0x40

static uint8_t frames[SEGMENTS][FRAME];
static uint64_t lens[SEGMENTS];

static uint16_t sum_of(const uint8_t *data, uint64_t len, uint32_t sum)
{
    for (uint64_t i = 0; i < len; i++)
        sum += i % 2 ? data[i] : (uint32_t)data[i] << 8;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

static void put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void put32(uint8_t *at, uint32_t value)
{
    put16(at, value >> 16);
    put16(at + 2, value);
}

static uint16_t tcp_sum(const uint8_t *ip, const uint8_t *tcp, uint32_t tcp_len)
{
    return sum_of(tcp, tcp_len, sum_of(ip + 12, 8, 6 + tcp_len));
}

static void put_sums(uint8_t *frame, uint64_t len, uint32_t ip, uint32_t tcp)
{
    put16(frame + ip + 10, 0);
    put16(frame + ip + 10, (uint16_t)~sum_of(frame + ip, tcp - ip, 0));
    put16(frame + tcp + 16, 0);
    put16(frame + tcp + 16, (uint16_t)~tcp_sum(frame + ip, frame + tcp, (uint32_t)len - tcp));
}

static void make(uint32_t index, uint32_t seq, uint32_t payload_len, uint8_t flags)
{
    uint8_t *f = frames[index];
    memset(f, 0, FRAME);
    memcpy(f, "\2\0\0\0\0\1\2\0\0\0\0\2\x08\0", 14);
    f[IP] = 0x45;
    put16(f + IP + 2, HEAD - IP + payload_len);
    put16(f + IP + 4, 0xfffe + index); /* wraps */
    f[IP + 8] = 64;
    f[IP + 9] = 6;
    memcpy(f + IP + 12, "\x0a\x09\0\2\x0a\x09\0\1", 8);
    put16(f + TCP, 80);
    put16(f + TCP + 2, 40000);
    put32(f + SEQ_AT, seq);
    put32(f + TCP + 8, 777);
    f[TCP + 12] = (20 + OPTIONS) / 4 << 4;
    f[FLAGS_AT] = flags;
    put16(f + TCP + 14, 500);
    memcpy(f + TCP + 20, "\1\1\x08\x0a\0\0\0\1\0\0\0\2", OPTIONS);
    for (uint32_t i = 0; i < payload_len; i++)
        f[HEAD + i] = (uint8_t)(i * 7 + index + seq);
    lens[index] = HEAD + payload_len;
    put_sums(f, lens[index], IP, TCP);
}

/* Makes `count` segments of `payload_len` bytes, the last one of `last_len`. Sequence numbers wrap. */
static void make_stretch(uint32_t count, uint32_t payload_len, uint32_t last_len, uint8_t last_flags)
{
    for (uint32_t i = 0; i < count; i++)
        make(i, 0xffffff00u + i * payload_len, i + 1 < count ? payload_len : last_len,
             i + 1 < count ? ACK : last_flags);
}

#endif
