/*
 * Joining and cutting TCP segments under libFuzzer.
 *
 *   input: a net header; then records: u8 flags, u16 length, and that number of bytes of a frame
 *          flags, bit 0: the frame's IP and TCP checksums are corrected first; bit 1: the frame gets the
 *          first frame's headers, with the sequence number that follows
 *
 * The first frame is cut like a large frame, according to that header: the cut ends within the
 * frame's bytes. All frames are joined as far as possible, and cut again. Then they equal the
 * originals, except for the IP packets' identification numbers.
 */
#include <stdlib.h>
#include <string.h>

#include "must.h"
#include "tcp_segments.h"
#include "tender_abi.h"

#define FRAMES    64
#define FRAME_MAX 2048
#define IP        14
#define TCP       34

static uint8_t frames[FRAMES][FRAME_MAX];
static uint32_t lens[FRAMES];

static void put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void put_sum(uint8_t *at, uint32_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    const uint16_t whole = (uint16_t)~sum;
    memcpy(at, &whole, sizeof whole);
}

static void put_sums(uint8_t *frame, uint32_t len)
{
    uint8_t rest[4] = {0, 6};
    if (len < TCP + 20)
        return;
    memset(frame + IP + 10, 0, 2);
    put_sum(frame + IP + 10, internet_sum(frame + IP, 20));
    memset(frame + TCP + 16, 0, 2);
    put16(rest + 2, len - TCP);
    put_sum(frame + TCP + 16, (uint32_t)internet_sum(frame + IP + 12, 8) + internet_sum(rest, 4) +
                                  internet_sum(frame + TCP, len - TCP));
}

static void follow(uint32_t index)
{
    uint8_t *frame = frames[index], *first = frames[0];
    const uint32_t seq = (uint32_t)first[TCP + 4] << 24 | (uint32_t)first[TCP + 5] << 16 |
                         (uint32_t)first[TCP + 6] << 8 | first[TCP + 7];
    const uint32_t head = TCP + (first[TCP + 12] >> 4) * 4u;
    uint32_t next = seq;
    if (lens[0] < TCP + 20 || lens[index] <= head || lens[0] <= head)
        return;
    for (uint32_t i = 0; i < index; i++)
        next += lens[i] - head;
    memcpy(frame, first, head);
    put16(frame + IP + 2, lens[index] - IP);
    put16(frame + IP + 4, ((uint32_t)first[IP + 4] << 8 | first[IP + 5]) + index);
    put16(frame + TCP + 4, next >> 16);
    put16(frame + TCP + 6, next);
}

static uint32_t take_frames(const uint8_t *data, size_t size)
{
    uint32_t count = 0;
    while (size > 3 && count < FRAMES) {
        const uint8_t flags = data[0];
        const uint32_t asked = (data[1] | (uint32_t)data[2] << 8) % FRAME_MAX;
        data += 3;
        size -= 3;
        const uint32_t len = asked < size ? asked : (uint32_t)size;
        memset(frames[count], 0, FRAME_MAX);
        memcpy(frames[count], data, len);
        lens[count] = flags & 2 ? asked : len;
        if (flags & 2 && count)
            follow(count);
        if (flags & 1)
            put_sums(frames[count], lens[count]);
        data += len;
        size -= len;
        count++;
    }
    return count;
}

/* The frame is in memory of exactly its size, so that a sanitizer finds an access past it. */
static void cut_all(uint8_t *frame, uint32_t len, const struct net_header *header)
{
    struct tcp_cut cut = {.frame = frame};
    uint8_t one[FRAME_MAX];
    if (!tcp_cut_begin(&cut, len, header))
        return;
    for (uint32_t steps = 0; cut.at != cut.end; steps++) {
        MUST(steps <= len && cut.at < cut.end && cut.end <= len);
        MUST(tcp_cut_next(&cut, one, sizeof one) <= len);
    }
}

static void check_same(const uint8_t *was, uint32_t len, uint8_t *now, uint64_t now_len)
{
    MUST(now_len == len);
    memcpy(now + IP + 4, was + IP + 4, 2);
    put_sums(now, len);
    MUST(memcmp(was, now, len) == 0);
}

static void join_all(uint32_t count)
{
    struct tcp_joined joined;
    uint8_t one[FRAME_MAX];
    if (!count || !tcp_join_first(&joined, frames[0], lens[0]))
        return;
    for (uint32_t i = 1; i < count && tcp_join_next(&joined, frames[i], lens[i]); i++)
        ;
    if (joined.count < 2)
        return;
    tcp_join_end(&joined);
    const uint32_t len = joined.head_len + joined.payload_len;
    uint8_t *const large = malloc(len), *at = large;
    MUST(large && len <= TCP_LARGE_MAX);
    for (uint32_t i = 1; i < 2 + joined.count; i++) {
        memcpy(at, joined.pieces[i].iov_base, joined.pieces[i].iov_len);
        at += joined.pieces[i].iov_len;
    }
    struct tcp_cut cut = {.frame = large};
    MUST(tcp_cut_begin(&cut, len, &joined.header));
    for (uint32_t i = 0; i < joined.count; i++) {
        MUST(cut.at != cut.end);
        check_same(frames[i], lens[i], one, tcp_cut_next(&cut, one, sizeof one));
    }
    MUST(cut.at == cut.end);
    free(large);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct net_header header;
    if (size < sizeof header)
        return 0;
    memcpy(&header, data, sizeof header);
    const uint32_t count = take_frames(data + sizeof header, size - sizeof header);
    if (count) {
        uint8_t *const exact = malloc(lens[0] ? lens[0] : 1);
        MUST(exact);
        memcpy(exact, frames[0], lens[0]);
        cut_all(exact, lens[0], &header);
        free(exact);
    }
    join_all(count);
    return 0;
}

#ifdef FUZZ_STANDALONE
int main(void)
{
    static const uint8_t start[10 + 3 + 60] = {1, 1, 0, 0, 100, 0, 34, 0, 16, 0, 3, 60, 0};
    return LLVMFuzzerTestOneInput(start, sizeof start);
}
#endif
