/* A network as the process that runs the guest is told of it. */
#ifndef TENDER_NET_SAVED_H
#define TENDER_NET_SAVED_H

#include "device_ops.h"

struct net_saved {
    uint32_t offload;
    uint8_t is_socket, has_header, named;
    char name[sizeof(((struct net_link *)0)->name)];
};
_Static_assert(sizeof(struct net_saved) <= DEVICE_SAVED_BYTES, "it has room");

#endif
