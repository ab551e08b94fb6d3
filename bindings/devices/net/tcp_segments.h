/*
 * TCP segments of one connection and the large frame that stands for all of them, as a TAP with IFF_VNET_HDR
 * takes and gives it (virtio's net header, TCP over IPv4): what a network card does, for a guest that knows
 * only frames. One large frame costs the kernel about what one segment does.
 *
 * What is joined is what the kernel's own receive offload would join: segments that follow each other, with
 * the same headers and right checksums. What is cut has the boundaries that the sender's segmentation gave
 * it. No VM here: bytes in, bytes out.
 */
#ifndef TENDER_TCP_SEGMENTS_H
#define TENDER_TCP_SEGMENTS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "net_header.h"

#define TCP_HEAD_MAX  98    /* Ethernet with a VLAN tag, IPv4, TCP with all options */
#define TCP_LARGE_MAX 65553 /* bytes of a large frame */

#define TCP_JOINED_MAX 48 /* segments of one large frame: 64 KiB of the usual 1448 bytes */

/* A large frame that is taken segment by segment. */
struct tcp_cut {
    uint8_t *frame; /* TCP_LARGE_MAX bytes and one more, which a guest may change at any time */
    uint32_t ip_at, tcp_at, head_len;
    uint32_t at, end; /* of the payload that is left; equal: nothing is */
    uint32_t segment_len, number;
};

/* Segments to be sent as one. The pieces point into the segments that were added. */
struct tcp_joined {
    struct net_header header;
    uint8_t head[TCP_HEAD_MAX];
    struct iovec pieces[2 + TCP_JOINED_MAX]; /* header, head, and a payload each */
    uint32_t count;                          /* of segments */
    uint32_t head_len, payload_len;
    uint32_t segment_len; /* payload of each but the last */
    bool complete;        /* nothing may follow */
};

/* The first segment; false: `frame` is none that another could follow. */
bool tcp_join_first(struct tcp_joined *joined, const uint8_t *frame, uint64_t len);

/* Adds a segment; false: it does not follow, and nothing has changed. */
bool tcp_join_next(struct tcp_joined *joined, const uint8_t *frame, uint64_t len);

/* Writes the headers of the whole: `pieces` can be sent, 2 + count of them. */
void tcp_join_end(struct tcp_joined *joined);

/* cut->frame has `len` bytes; false: it is no large frame that can be cut. */
bool tcp_cut_begin(struct tcp_cut *cut, uint64_t len, const struct net_header *header);

/* The next segment: its length. If that is more than `capacity` nothing is written. Something is left. */
uint32_t tcp_cut_next(struct tcp_cut *cut, uint8_t *to, uint64_t capacity);

/* RFC 1071: the ones' complement sum of these bytes, as the bytes lie in memory, folded to 16 bits. */
uint16_t internet_sum(const uint8_t *data, uint64_t len);

#endif
