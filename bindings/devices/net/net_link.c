/*
 * A TAP whose interface is deleted while its guest runs, in the process that holds the VM. This
 * file reports the deletion, and attaches the next interface of the same name. The guest's side is
 * net_detached.c.
 *
 * For a descriptor without an interface, ppoll() reports POLLERR. There is no other notification:
 * the deletion does not wake a ppoll() that waits for no event.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "device.h"
#include "net.h"

#define TRY_NS          100000000u /* the time between two tries, however often the guest asks */
#define TRIES_TO_REPORT 5          /* a problem is reported after this many tries, because some pass */
#define NAME_SHOWN_MAX  (4 * sizeof(((struct net_link *)0)->name) + sizeof "...")

_Static_assert(DEVICE_BLOCK_FORMAT < 64, "one bit for each problem");

static bool has_no_interface(int fd)
{
    static const struct timespec at_once = {0, 0};
    struct pollfd end = {fd, POLLIN, 0};
    return ppoll(&end, 1, &at_once, NULL) == 1 && end.revents & POLLERR;
}

/* Returns true if `error` must be reported: it lasts, and was not reported yet. */
static bool problem_is_new(struct net_link *link, const struct device_error *error)
{
    if (error->problem == DEVICE_TAP_MISSING || error->os_error == EEXIST) /* the deletion is not finished */
        return false;
    link->tries = error->problem == link->problem ? link->tries + 1 : 1;
    link->problem = error->problem;
    const uint64_t bit = UINT64_C(1) << error->problem;
    if (link->tries < TRIES_TO_REPORT || link->reported & bit)
        return false;
    link->reported |= bit;
    return true;
}

static const char *problem_text(const struct device_error *error)
{
    switch (error->problem) {
    case DEVICE_TAP_DOWN:
        return "it is down";
    case DEVICE_TAP_DENIED:
        return "it belongs to another user";
    case DEVICE_TAP_BUSY:
        return "another process has it open";
    case DEVICE_TAP_KIND:
        return "it is not a TAP interface with a single queue";
    default:
        return strerror(error->os_error);
    }
}

/*
 * Tries to attach the next interface of the same name. Returns true if `text` has a report why that
 * is not possible.
 */
static bool try_again(struct vm *vm, uint32_t handle, net_attacher *attach, bool *lost, char *text,
                      const char *name)
{
    struct net_link *link = &net_of(&vm->devices[handle])->link;
    struct device_error error = {0};
    const uint64_t now_ns = monotonic_ns();
    if (now_ns < link->next_ns)
        return false;
    link->next_ns = now_ns + TRY_NS;
    *lost = attach(vm, handle, &error) < 0;
    if (!*lost || !problem_is_new(link, &error))
        return false;
    (void)snprintf(text, NET_NEWS_BYTES, "%s: the new interface cannot be attached: %s; tender keeps trying",
                   name, problem_text(&error));
    return true;
}

static bool has_news(struct vm *vm, uint32_t handle, net_attacher *attach, char *text)
{
    struct vm_device *device = &vm->devices[handle];
    struct net_link *link = &net_of(device)->link;
    char name[NAME_SHOWN_MAX];
    (void)text_escape(name, sizeof name, link->name, true);
    bool lost = has_no_interface(device->fd);
    if (lost && link->lost && link->again && attach && try_again(vm, handle, attach, &lost, text, name))
        return true;
    if (lost == link->lost)
        return false;
    link->lost = lost;
    link->reported = link->tries = 0;
    if (lost)
        (void)snprintf(text, NET_NEWS_BYTES,
                       "%s: the interface was deleted; the guest goes on without this network%s", name,
                       link->again   ? " until there is a new one"
                       : link->named ? "; with --net-reattach it takes a new one"
                                     : " until the owner of its descriptor attaches it to a new interface");
    else
        (void)snprintf(text, NET_NEWS_BYTES, "%s: an interface is attached again", name);
    return true;
}

bool net_news(struct vm *vm, uint32_t *next, net_attacher *attach, char *text)
{
    while (*next < vm->device_end) {
        const uint32_t handle = (*next)++;
        const struct vm_device *device = &vm->devices[handle];
        if (is_net(device) && net_of(device)->link.name[0] && has_news(vm, handle, attach, text))
            return true;
    }
    return false;
}
