/* Devices as devices/attach.c makes them. The answers that the host would give are arguments here. */
#ifndef TEST_DEVICES_H
#define TEST_DEVICES_H

#include "disk.h"
#include "net.h"

static inline struct vm_device net_on(int fd, struct net_device own)
{
    struct vm_device device = {.type = MFT_NET_BASIC, .fd = fd};
    *net_of(&device) = own;
    return device;
}

static inline struct vm_device disk_on(int fd, struct disk own)
{
    struct vm_device device = {.type = MFT_BLOCK_BASIC, .fd = fd};
    *disk_of(&device) = own;
    return device;
}

#endif
