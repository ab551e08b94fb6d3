/*
 * A TAP whose interface is deleted while its guest runs, for the process that holds the VM: what is said of
 * it. The guest's side is core/hc_net_link.c.
 *
 * A descriptor without an interface answers ppoll() with POLLERR. Nothing else says so by itself: a ppoll()
 * that waits for no event is not woken by the deletion.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <stdio.h>
#include <time.h>

#include "device.h"

static bool has_no_interface(int fd)
{
    static const struct timespec at_once = {0, 0};
    struct pollfd end = {fd, POLLIN, 0};
    return ppoll(&end, 1, &at_once, NULL) == 1 && end.revents & POLLERR;
}

static bool has_news(struct vm_device *device, char *text)
{
    struct net_link *link = &device->link;
    char name[4 * sizeof link->name + sizeof "..."];
    const bool lost = has_no_interface(device->fd);
    if (lost == link->lost)
        return false;
    link->lost = lost;
    (void)text_escape(name, sizeof name, link->name, true);
    if (lost)
        (void)snprintf(text, NET_NEWS_BYTES,
                       "%s: the interface was deleted; the guest goes on without this network%s", name,
                       link->named ? "; start it again once there is a new one"
                                   : " until whoever gave its descriptor attaches it to a new interface");
    else
        (void)snprintf(text, NET_NEWS_BYTES, "%s: an interface is attached again", name);
    return true;
}

bool net_news(struct vm *vm, uint32_t *next, char *text)
{
    while (*next < vm->device_end) {
        struct vm_device *device = &vm->devices[(*next)++];
        if (device->type == MFT_NET_BASIC && device->link.name[0] && has_news(device, text))
            return true;
    }
    return false;
}
