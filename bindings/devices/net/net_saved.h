/* A network as the process that runs the guest is told of it. */
#ifndef TENDER_NET_SAVED_H
#define TENDER_NET_SAVED_H

#include "device_ops.h"

struct net_saved {
    uint32_t is_socket, has_header, offload;
};
_Static_assert(sizeof(struct net_saved) <= DEVICE_SAVED_BYTES, "it has room");

#endif
