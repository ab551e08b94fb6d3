/* virtio's net header, which a TAP with IFF_VNET_HDR has. All zero means that the frame is complete. */
#ifndef TENDER_NET_HEADER_H
#define TENDER_NET_HEADER_H

#include <stdint.h>

struct net_header {
    uint8_t flags;
    uint8_t gso_type;
    uint16_t hdr_len;
    uint16_t gso_size;
    uint16_t csum_start;
    uint16_t csum_offset;
};
_Static_assert(sizeof(struct net_header) == 10, "no padding");

#endif
