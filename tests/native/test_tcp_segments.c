/*
 * TCP segments and the large frame that stands for them, as bytes: segments that are joined and cut
 * again are unchanged, and segments that must not be joined are not. Checksums are computed here
 * byte by byte. Prints one TAP line for each check and exits with 1 if one fails.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "holds.h"
#include "tcp_frames.h"
#include "tcp_segments.h"
#include "tender_abi.h"

static struct tcp_joined joined;
static struct tcp_cut cut;

#define claim(text, holds) check(holds, text, __LINE__)

static uint32_t join(uint32_t count)
{
    if (!tcp_join_first(&joined, frames[0], lens[0]))
        return 0;
    for (uint32_t i = 1; i < count && tcp_join_next(&joined, frames[i], lens[i]); i++)
        ;
    return joined.count;
}

/* Puts the joined frame into memory that ends at a page without rights. Returns its length. */
static uint64_t lay_out(void)
{
    static uint8_t *end;
    if (!end) {
        uint8_t *mapping = mmap(NULL, 0x20000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapping == MAP_FAILED || mprotect(mapping + 0x1f000, 0x1000, PROT_NONE) < 0)
            abort();
        end = mapping + 0x1f000;
    }
    uint64_t len = 0;
    for (uint32_t i = 1; i < 2 + joined.count; i++)
        len += joined.pieces[i].iov_len;
    uint8_t *at = cut.frame = end - len;
    for (uint32_t i = 1; i < 2 + joined.count; i++) {
        memcpy(at, joined.pieces[i].iov_base, joined.pieces[i].iov_len);
        at += joined.pieces[i].iov_len;
    }
    return len;
}

static bool comes_back(uint32_t count)
{
    uint8_t one[FRAME];
    tcp_join_end(&joined);
    const uint64_t len = lay_out();
    if (!tcp_cut_begin(&cut, len, &joined.header))
        return false;
    for (uint32_t i = 0; i < count; i++)
        if (cut.at == cut.end || tcp_cut_next(&cut, one, sizeof one) != lens[i] ||
            memcmp(one, frames[i], lens[i]) != 0)
            return false;
    return cut.at == cut.end;
}

static void sums(void)
{
    static uint8_t bytes[3000];
    bool right = true;
    for (uint32_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i % 3 ? 0xff : i * i);
    for (uint32_t len = 0; len < sizeof bytes - 3; len++) {
        uint8_t shown[2];
        const uint16_t sum = internet_sum(bytes + len % 3, len);
        memcpy(shown, &sum, sizeof sum);
        right = right && (shown[0] << 8 | shown[1]) == sum_of(bytes + len % 3, len, 0);
    }
    claim("sums of each length are those of RFC 1071", right);
}

static void stretches(void)
{
    static const uint32_t counts[] = {2, 3, 44, TCP_JOINED_MAX}, payloads[] = {1, 2, 536, 1247};
    bool whole = true, header = true;
    for (uint32_t c = 0; c < 4; c++)
        for (uint32_t p = 0; p < 4; p++)
            for (uint32_t last = 1; last <= payloads[p]; last += payloads[p] > 2 ? 177 : 1)
                for (uint32_t push = 0; push < 2; push++) {
                    make_stretch(counts[c], payloads[p], last, push ? ACK | PSH : ACK);
                    whole = whole && join(counts[c]) == counts[c] && comes_back(counts[c]);
                    const struct net_header *h = &joined.header;
                    header = header && h->flags == TENDER_NET_NEEDS_CSUM && h->gso_type == TENDER_GSO_TCP4 &&
                             h->hdr_len == HEAD && h->gso_size == payloads[p] && h->csum_start == TCP &&
                             h->csum_offset == 16;
                }
    claim("segments that are joined and cut again are unchanged", whole);
    claim("the header contains the segments' length and the place of the checksum", header);
}

static void pseudo(void)
{
    make_stretch(3, 1000, 1000, ACK);
    claim("three are joined", join(3) == 3);
    tcp_join_end(&joined);
    const uint64_t len = lay_out();
    const uint8_t *f = cut.frame;
    claim("its IP sum is right", sum_of(f + IP, 20, 0) == 0xffff);
    claim("its length is that of all segments", (f[IP + 2] << 8 | f[IP + 3]) == (int)(len - IP));
    claim("the checksum field contains the pseudo header's sum",
          (f[TCP + 16] << 8 | f[TCP + 17]) == sum_of(f + IP + 12, 8, 6 + (uint32_t)len - TCP));
}

/* Changes each bit of the second segment's headers, with its checksums corrected. Only PSH may differ. */
static void other_headers(void)
{
    uint32_t wrong = 0, pushed = 0;
    for (uint32_t at = 0; at < HEAD; at++)
        for (uint32_t bit = 0; bit < 8; bit++) {
            make_stretch(2, 100, 100, ACK);
            frames[1][at] ^= (uint8_t)(1u << bit);
            if (at != TCP + 12) /* the checksums depend on the headers' lengths */
                put_sums(frames[1], lens[1], IP, TCP);
            const bool is_sum = at / 2 == (IP + 10) / 2 || at / 2 == (TCP + 16) / 2;
            const bool follows = join(2) == 2;
            pushed += follows && at == FLAGS_AT && 1u << bit == PSH;
            wrong += follows && !is_sum && !(at == FLAGS_AT && 1u << bit == PSH);
            wrong += !follows && is_sum;
        }
    claim("a header that differs in any bit is not joined", wrong == 0);
    claim("except PSH, which the last segment may have", pushed == 1);
}

static void first_headers(void)
{
    static const struct {
        uint32_t at;
        uint8_t value;
        const char *what;
    } table[] = {
        {12, 0x86, "another protocol than IPv4"},
        {IP, 0x46, "IP options"},
        {IP, 0x65, "another IP version"},
        {IP + 3, 1, "a length that is not the frame's"},
        {IP + 6, 0x20, "a fragment that is not the last"},
        {IP + 7, 1, "a fragment's offset"},
        {IP + 9, 17, "UDP"},
        {TCP + 12, 0x40, "TCP headers that are too short"},
        {TCP + 12, 0xf0, "TCP headers longer than the frame"},
        {FLAGS_AT, ACK | 1, "FIN"},
        {FLAGS_AT, ACK | 2, "SYN"},
        {FLAGS_AT, ACK | 4, "RST"},
        {FLAGS_AT, ACK | PSH, "PSH, which ends a stretch"},
        {FLAGS_AT, ACK | 0x20, "URG"},
        {FLAGS_AT, ACK | 0x40, "ECE"},
        {FLAGS_AT, ACK | 0x80, "CWR"},
        {FLAGS_AT, 0, "no ACK"},
    };
    char text[120];
    for (uint32_t i = 0; i < sizeof table / sizeof *table; i++) {
        make_stretch(2, 10, 10, ACK);
        frames[0][table[i].at] = table[i].value;
        (void)snprintf(text, sizeof text, "none begins with %s", table[i].what);
        claim(text, join(2) == 0);
    }
    make_stretch(2, 10, 10, ACK);
    bool none = true;
    for (uint64_t len = 0; len <= HEAD; len++)
        none = none && !tcp_join_first(&joined, frames[0], len);
    claim("nor with a frame that is cut within its headers, or has no payload", none);
}

static void wrong_sums(void)
{
    static const uint32_t places[] = {IP + 10, TCP + 16, HEAD, HEAD + 99};
    bool joined_none = true;
    for (uint32_t which = 0; which < 2; which++)
        for (uint32_t i = 0; i < sizeof places / sizeof *places; i++) {
            make_stretch(2, 100, 100, ACK);
            frames[which][places[i]] ^= 1;
            joined_none = joined_none && join(2) < 2;
        }
    claim("a wrong checksum does not become right", joined_none);
}

static void ends(void)
{
    make_stretch(4, 100, 100, ACK);
    make(1, 0xffffff00u + 100, 100, ACK | PSH);
    claim("nothing follows PSH", join(4) == 2);
    make_stretch(4, 100, 100, ACK);
    make(1, 0xffffff00u + 100, 99, ACK);
    make(2, 0xffffff00u + 199, 99, ACK);
    claim("nothing follows a shorter segment", join(4) == 2);
    make_stretch(2, 100, 100, ACK);
    make(1, 0xffffff00u + 100, 101, ACK);
    claim("a longer segment does not follow", join(2) == 1);
    make_stretch(SEGMENTS, 10, 10, ACK);
    claim("the number of segments is limited", join(SEGMENTS) == TCP_JOINED_MAX);
    make_stretch(SEGMENTS, 1900, 1900, ACK);
    claim("an IP packet is no longer than 65535", join(SEGMENTS) == (65535 - 20 - 32) / 1900);
    make_stretch(3, 100, 100, ACK);
    for (uint32_t i = 0; i < 3; i++) {
        frames[i][IP + 6] |= DF;
        put16(frames[i] + IP + 4, 0);
        put_sums(frames[i], lens[i], IP, TCP);
    }
    claim("the number of a packet that must not be fragmented does not matter", join(3) == 3);
}

static void cuts(void)
{
    uint8_t one[FRAME];
    make_stretch(3, 100, 50, ACK);
    (void)join(3);
    tcp_join_end(&joined);
    const uint64_t len = lay_out();
    cut.frame[FLAGS_AT] = ACK | PSH | 0x81; /* FIN, CWR */
    bool flags = tcp_cut_begin(&cut, len, &joined.header);
    static const uint8_t expected[] = {ACK | 0x80, ACK, ACK | PSH | 1};
    for (uint32_t i = 0; i < 3; i++)
        flags = flags && tcp_cut_next(&cut, one, sizeof one) && one[FLAGS_AT] == expected[i];
    claim("the first segment has CWR, the last one FIN and PSH", flags);

    bool bounded = true;
    for (uint64_t capacity = 0; capacity < HEAD + 110; capacity++) {
        memset(one, 0xaa, sizeof one);
        bounded = bounded && tcp_cut_begin(&cut, len, &joined.header) &&
                  tcp_cut_next(&cut, one, capacity) == HEAD + 100 && cut.at == HEAD + 100 &&
                  (one[0] == 0xaa) == (capacity < HEAD + 100) && one[HEAD + 100] == 0xaa;
    }
    claim("a segment that does not fit is not written, and is skipped", bounded);

    static uint8_t tagged[FRAME];
    memcpy(tagged, frames[0], 12);
    memcpy(tagged + 12, "\x81\0\0\7", 4);
    memcpy(tagged + 16, frames[0] + 12, lens[0] - 12);
    cut.frame = tagged;
    const struct net_header header = {.gso_type = TENDER_GSO_TCP4, .gso_size = 100};
    bool vlan = tcp_cut_begin(&cut, lens[0] + 4, &header) &&
                tcp_cut_next(&cut, one, sizeof one) == lens[0] + 4 && memcmp(one, tagged, lens[0] + 4) == 0;
    claim("a VLAN tag stays", vlan);
}

/* A frame that is not a large frame is not cut. Tries each possible length of each frame whose
 * header is false. */
static void lies(void)
{
    static const uint32_t places[] = {12, 13, IP, IP + 9, TCP + 12};
    uint8_t one[FRAME];
    make_stretch(3, 100, 50, ACK);
    (void)join(3);
    tcp_join_end(&joined);
    const uint64_t whole = lay_out();
    uint8_t *const end = cut.frame + whole;
    bool refused = true;
    struct net_header header = joined.header;
    header.gso_size = 0;
    refused = refused && !tcp_cut_begin(&cut, whole, &header);
    for (uint32_t type = 0; type < 256; type++) {
        header = joined.header;
        header.gso_type = (uint8_t)type;
        refused = refused && tcp_cut_begin(&cut, whole, &header) == (type == TENDER_GSO_TCP4);
    }
    refused = refused && !tcp_cut_begin(&cut, TCP_LARGE_MAX + 1, &joined.header) && cut.at == cut.end;
    claim("a frame that is not large is not cut", refused);

    bool ended = true;
    for (uint32_t place = 0; place < sizeof places / sizeof *places; place++)
        for (uint32_t value = 0; value < 256; value++)
            for (uint64_t len = 0; len <= whole; len += len < HEAD + 2 ? 1 : 97) {
                memmove(end - len, cut.frame, len < whole ? len : whole);
                uint8_t *const kept = cut.frame;
                cut.frame = end - len;
                if (len > places[place])
                    cut.frame[places[place]] = (uint8_t)value;
                if (tcp_cut_begin(&cut, len, &joined.header))
                    for (uint32_t i = 0; cut.at != cut.end; i++) {
                        ended = ended && i <= len && tcp_cut_next(&cut, one, sizeof one) <= whole;
                    }
                cut.frame = kept;
                (void)lay_out();
            }
    claim("false headers cause no access past the frame", ended);
}

int main(void)
{
    sums();
    stretches();
    pseudo();
    first_headers();
    other_headers();
    wrong_sums();
    ends();
    cuts();
    lies();
    return claims_end();
}
