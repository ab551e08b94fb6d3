/* Joins and cuts TCP segments; tcp_segments.h has the contract. */
#include "tcp_segments.h"

#include <string.h>

#include "tender_abi.h"

enum {
    ETHERNET_BYTES = 14,
    VLAN_BYTES = 4,
    IP_BYTES = 20, /* without options */
    TCP_BYTES = 20,
    IP_LENGTH_MAX = 65535,
    /* offsets of fields in their headers */
    ETHER_TYPE = 12,
    IP_LENGTH = 2,
    IP_ID = 4,
    IP_FRAGMENT = 6,
    IP_PROTOCOL = 9,
    IP_SUM = 10,
    IP_ADDRESSES = 12,
    TCP_SEQ = 4,
    TCP_DATA_OFFSET = 12,
    TCP_FLAGS = 13,
    TCP_SUM = 16,
};

#define ETHER_IP4     0x0800
#define ETHER_VLAN    0x8100
#define PROTOCOL_TCP  6
#define DONT_FRAGMENT 0x4000
#define FRAGMENT_BITS 0xbfff /* all except DONT_FRAGMENT */
#define FLAG_FIN      0x01
#define FLAG_PSH      0x08
#define FLAG_ACK      0x10
#define FLAG_CWR      0x80

static uint16_t get16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static void put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static uint32_t get32(const uint8_t *at)
{
    return (uint32_t)get16(at) << 16 | get16(at + 2);
}

static void put32(uint8_t *at, uint32_t value)
{
    put16(at, value >> 16);
    put16(at + 2, value);
}

static uint16_t fold(uint64_t sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

uint16_t internet_sum(const uint8_t *data, uint64_t len)
{
    uint64_t sum = 0;
    uint32_t words[4];
    for (; len >= sizeof words; data += sizeof words, len -= sizeof words) {
        memcpy(words, data, sizeof words);
        sum += (uint64_t)words[0] + words[1] + words[2] + words[3];
    }
    if (len) {
        memset(words, 0, sizeof words);
        memcpy(words, data, len);
        sum += (uint64_t)words[0] + words[1] + words[2] + words[3];
    }
    return fold(sum);
}

/* Returns the sum of TCP's pseudo header, in memory order. */
static uint16_t pseudo_sum(const uint8_t *ip, uint32_t tcp_len)
{
    uint8_t rest[4] = {0, PROTOCOL_TCP};
    put16(rest + 2, tcp_len);
    return fold((uint64_t)internet_sum(ip + IP_ADDRESSES, 8) + internet_sum(rest, sizeof rest));
}

static void put_ip_sum(uint8_t *ip, uint32_t ip_len)
{
    memset(ip + IP_SUM, 0, 2);
    const uint16_t sum = (uint16_t)~internet_sum(ip, ip_len);
    memcpy(ip + IP_SUM, &sum, sizeof sum);
}

/* ---- Frames to send: Ethernet without a tag, IPv4 without options. */

struct segment {
    uint8_t head[TCP_HEAD_MAX]; /* a copy, read once: the guest may change its memory */
    uint32_t head_len;
    const uint8_t *payload;
    uint32_t payload_len;
};

#define IP_AT  ETHERNET_BYTES
#define TCP_AT (ETHERNET_BYTES + IP_BYTES)

static bool parse(struct segment *s, const uint8_t *frame, uint64_t len)
{
    const uint8_t *const ip = s->head + IP_AT, *const tcp = s->head + TCP_AT;
    if (len < TCP_AT + TCP_BYTES || len > ETHERNET_BYTES + IP_LENGTH_MAX)
        return false;
    memcpy(s->head, frame, TCP_AT + TCP_BYTES);
    if (get16(s->head + ETHER_TYPE) != ETHER_IP4 || ip[0] != 0x45 || ip[IP_PROTOCOL] != PROTOCOL_TCP ||
        get16(ip + IP_FRAGMENT) & FRAGMENT_BITS || get16(ip + IP_LENGTH) != len - ETHERNET_BYTES ||
        (tcp[TCP_FLAGS] & (uint8_t)~FLAG_PSH) != FLAG_ACK)
        return false;
    s->head_len = TCP_AT + (tcp[TCP_DATA_OFFSET] >> 4) * 4u;
    if (s->head_len < TCP_AT + TCP_BYTES || s->head_len >= len)
        return false;
    memcpy(s->head + TCP_AT + TCP_BYTES, frame + TCP_AT + TCP_BYTES, s->head_len - (TCP_AT + TCP_BYTES));
    s->payload = frame + s->head_len;
    s->payload_len = (uint32_t)len - s->head_len;
    return true;
}

/*
 * Joined segments lose their checksums. So a wrong checksum must be found here, or it would become
 * a correct one.
 */
static bool sums_are_correct(const uint8_t *head, uint32_t head_len, const uint8_t *payload,
                             uint32_t payload_len)
{
    const uint32_t tcp_len = head_len - TCP_AT + payload_len;
    return internet_sum(head + IP_AT, IP_BYTES) == 0xffff &&
           fold((uint64_t)pseudo_sum(head + IP_AT, tcp_len) + internet_sum(head + TCP_AT, head_len - TCP_AT) +
                internet_sum(payload, payload_len)) == 0xffff;
}

bool tcp_join_first(struct tcp_joined *joined, const uint8_t *frame, uint64_t len)
{
    struct segment s;
    if (!parse(&s, frame, len) || s.head[TCP_AT + TCP_FLAGS] & FLAG_PSH)
        return false;
    memcpy(joined->head, s.head, s.head_len);
    joined->head_len = s.head_len;
    joined->payload_len = joined->segment_len = s.payload_len;
    joined->pieces[2] = (struct iovec){(void *)(uintptr_t)s.payload, s.payload_len};
    joined->count = 1;
    joined->complete = false;
    return true;
}

/*
 * Whether the headers are equal to the first segment's, except for the fields that change in each
 * segment.
 */
static bool follows(const struct tcp_joined *joined, const struct segment *s)
{
    const uint8_t *const a = joined->head, *const b = s->head;
    const uint32_t after_sum = TCP_AT + TCP_SUM + 2;
    const bool numbered = get16(b + IP_AT + IP_ID) == (uint16_t)(get16(a + IP_AT + IP_ID) + joined->count);
    return s->head_len == joined->head_len && memcmp(a, b, IP_AT + IP_LENGTH) == 0 &&
           (numbered || get16(a + IP_AT + IP_FRAGMENT) == DONT_FRAGMENT) &&
           memcmp(a + IP_AT + IP_FRAGMENT, b + IP_AT + IP_FRAGMENT, IP_SUM - IP_FRAGMENT) == 0 &&
           memcmp(a + IP_AT + IP_ADDRESSES, b + IP_AT + IP_ADDRESSES,
                  TCP_AT + TCP_SEQ - IP_AT - IP_ADDRESSES) == 0 &&
           get32(b + TCP_AT + TCP_SEQ) == get32(a + TCP_AT + TCP_SEQ) + joined->payload_len &&
           memcmp(a + TCP_AT + TCP_SEQ + 4, b + TCP_AT + TCP_SEQ + 4, TCP_FLAGS - TCP_SEQ - 4) == 0 &&
           memcmp(a + TCP_AT + TCP_FLAGS + 1, b + TCP_AT + TCP_FLAGS + 1, TCP_SUM - TCP_FLAGS - 1) == 0 &&
           memcmp(a + after_sum, b + after_sum, s->head_len - after_sum) == 0;
}

bool tcp_join_next(struct tcp_joined *joined, const uint8_t *frame, uint64_t len)
{
    struct segment s;
    if (joined->complete || joined->count == TCP_JOINED_MAX || !parse(&s, frame, len) ||
        s.payload_len > joined->segment_len ||
        joined->head_len - ETHERNET_BYTES + joined->payload_len + s.payload_len > IP_LENGTH_MAX ||
        !follows(joined, &s) || !sums_are_correct(s.head, s.head_len, s.payload, s.payload_len))
        return false;
    const struct iovec *first = &joined->pieces[2];
    if (joined->count == 1 &&
        !sums_are_correct(joined->head, joined->head_len, first->iov_base, (uint32_t)first->iov_len))
        return false;
    const uint8_t pushed = s.head[TCP_AT + TCP_FLAGS] & FLAG_PSH;
    joined->head[TCP_AT + TCP_FLAGS] |= pushed;
    joined->complete = pushed || s.payload_len < joined->segment_len;
    joined->pieces[2 + joined->count++] = (struct iovec){(void *)(uintptr_t)s.payload, s.payload_len};
    joined->payload_len += s.payload_len;
    return true;
}

void tcp_join_end(struct tcp_joined *joined)
{
    uint8_t *const ip = joined->head + IP_AT;
    const uint32_t tcp_len = joined->head_len - TCP_AT + joined->payload_len;
    put16(ip + IP_LENGTH, IP_BYTES + tcp_len);
    put_ip_sum(ip, IP_BYTES);
    const uint16_t sum = pseudo_sum(ip, tcp_len);
    memcpy(joined->head + TCP_AT + TCP_SUM, &sum, sizeof sum);
    joined->header = (struct net_header){
        .flags = TENDER_NET_NEEDS_CSUM,
        .gso_type = TENDER_GSO_TCP4,
        .hdr_len = (uint16_t)joined->head_len,
        .gso_size = (uint16_t)joined->segment_len,
        .csum_start = TCP_AT,
        .csum_offset = TCP_SUM,
    };
    joined->pieces[0] = (struct iovec){&joined->header, sizeof joined->header};
    joined->pieces[1] = (struct iovec){joined->head, joined->head_len};
}

/*
 * ---- Received frames: they come from the host's kernel, not from the guest, but are checked all the same.
 */

bool tcp_cut_begin(struct tcp_cut *cut, uint64_t len, const struct net_header *header)
{
    const uint8_t *const f = cut->frame;
    cut->at = cut->end = 0;
    if (header->gso_type != TENDER_GSO_TCP4 || !header->gso_size || len > TCP_LARGE_MAX ||
        len < ETHERNET_BYTES + VLAN_BYTES + IP_BYTES + TCP_BYTES)
        return false;
    cut->ip_at = ETHERNET_BYTES + (get16(f + ETHER_TYPE) == ETHER_VLAN ? VLAN_BYTES : 0);
    const uint8_t *const ip = f + cut->ip_at;
    cut->tcp_at = cut->ip_at + (ip[0] & 0xf) * 4u;
    if (get16(ip - 2) != ETHER_IP4 || ip[0] >> 4 != 4 || ip[IP_PROTOCOL] != PROTOCOL_TCP ||
        cut->tcp_at < cut->ip_at + IP_BYTES || cut->tcp_at + TCP_BYTES > len)
        return false;
    cut->head_len = cut->tcp_at + (f[cut->tcp_at + TCP_DATA_OFFSET] >> 4) * 4u;
    if (cut->head_len < cut->tcp_at + TCP_BYTES || cut->head_len >= len)
        return false;
    cut->at = cut->head_len;
    cut->end = (uint32_t)len;
    cut->segment_len = header->gso_size;
    cut->number = 0;
    return true;
}

uint32_t tcp_cut_next(struct tcp_cut *cut, uint8_t *to, uint64_t capacity)
{
    uint8_t head[ETHERNET_BYTES + VLAN_BYTES + 60 + 60];
    uint8_t *const ip = head + cut->ip_at, *const tcp = head + cut->tcp_at;
    const uint32_t left = cut->end - cut->at;
    const uint32_t payload_len = left < cut->segment_len ? left : cut->segment_len;
    const uint32_t tcp_len = cut->head_len - cut->tcp_at + payload_len;
    memcpy(head, cut->frame, cut->head_len);
    put16(ip + IP_LENGTH, cut->tcp_at - cut->ip_at + tcp_len);
    put16(ip + IP_ID, get16(ip + IP_ID) + cut->number);
    put_ip_sum(ip, cut->tcp_at - cut->ip_at);
    put32(tcp + TCP_SEQ, get32(tcp + TCP_SEQ) + cut->number * cut->segment_len);
    if (left > payload_len)
        tcp[TCP_FLAGS] &= (uint8_t)~(FLAG_FIN | FLAG_PSH);
    if (cut->number)
        tcp[TCP_FLAGS] &= (uint8_t)~FLAG_CWR;
    memset(tcp + TCP_SUM, 0, 2);
    const uint16_t sum =
        (uint16_t)~fold((uint64_t)pseudo_sum(ip, tcp_len) + internet_sum(tcp, cut->head_len - cut->tcp_at) +
                        internet_sum(cut->frame + cut->at, payload_len));
    memcpy(tcp + TCP_SUM, &sum, sizeof sum);

    if (cut->head_len + payload_len <= capacity) {
        memcpy(to, head, cut->head_len);
        memcpy(to + cut->head_len, cut->frame + cut->at, payload_len);
    }
    cut->at += payload_len;
    cut->number++;
    return cut->head_len + payload_len;
}
