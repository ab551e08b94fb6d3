/*
 * Joins TCP segments of one connection into one large frame, and cuts such a frame into segments. A
 * TAP with IFF_VNET_HDR takes and returns such frames (virtio's net header, TCP over IPv4). A
 * network card does the same; here it is done for a guest that knows only plain frames. One large
 * frame costs the kernel about as much as one segment.
 *
 * Segments are joined if the kernel's own receive offload would join them: they follow each other,
 * have the same headers, and have correct checksums. A frame is cut at the boundaries of the
 * sender's segmentation. This code does not know a VM: it only transforms bytes.
 */
#ifndef TENDER_TCP_SEGMENTS_H
#define TENDER_TCP_SEGMENTS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "net_header.h"

#define TCP_HEAD_MAX  98    /* Ethernet with a VLAN tag, IPv4, TCP with all options */
#define TCP_LARGE_MAX 65553 /* bytes of a large frame */

#define TCP_JOINED_MAX 48 /* segments of one large frame: 64 KiB in segments of the usual 1448 bytes */

/* A large frame that is taken segment by segment. */
struct tcp_cut {
    uint8_t *frame; /* TCP_LARGE_MAX bytes and one more; a guest may change them at any time */
    uint32_t ip_at, tcp_at, head_len;
    uint32_t at, end; /* the payload that is left; equal: there is none */
    uint32_t segment_len, number;
};

/* Segments to send as one frame. The pieces point into the segments that were added. */
struct tcp_joined {
    struct net_header header;
    uint8_t head[TCP_HEAD_MAX];
    struct iovec pieces[2 + TCP_JOINED_MAX]; /* header, head, and the payload of each segment */
    uint32_t count;                          /* the number of segments */
    uint32_t head_len, payload_len;
    uint32_t segment_len; /* the payload of each segment except the last */
    bool complete;        /* no segment may follow */
};

/* Starts with the first segment. Returns false if no other segment can follow `frame`. */
bool tcp_join_first(struct tcp_joined *joined, const uint8_t *frame, uint64_t len);

/* Adds a segment. Returns false if it does not follow; then nothing has changed. */
bool tcp_join_next(struct tcp_joined *joined, const uint8_t *frame, uint64_t len);

/* Writes the headers of the large frame. Then the first 2 + count of `pieces` can be sent. */
void tcp_join_end(struct tcp_joined *joined);

/*
 * Begins to cut cut->frame, which has `len` bytes. Returns false if it is not a large frame that
 * can be cut.
 */
bool tcp_cut_begin(struct tcp_cut *cut, uint64_t len, const struct net_header *header);

/*
 * Writes the next segment and returns its length. If that is more than `capacity`, nothing is
 * written. There must be a segment left.
 */
uint32_t tcp_cut_next(struct tcp_cut *cut, uint8_t *to, uint64_t capacity);

/* RFC 1071: returns the ones' complement sum of these bytes, in memory order, folded to 16 bits. */
uint16_t internet_sum(const uint8_t *data, uint64_t len);

#endif
