/* What a network keeps of itself, and all networks of a VM together. The folder's own; its space is in
 * core/vm.h. */
#ifndef TENDER_NET_H
#define TENDER_NET_H

#include <stdatomic.h>

#include "device_ops.h"
#include "ring_state.h"
#include "tcp_segments.h"

/* What is known of a TAP's interface by who opened the descriptor; net_link.c. */
struct net_link {
    char name[16];    /* the interface's, when it was attached; empty: no TAP */
    bool named;       /* we opened it by that name; else the descriptor was given to us */
    bool again;       /* a new interface of that name is to be attached */
    bool lost;        /* it was said that the interface is gone */
    uint64_t next_ns; /* when to try that again */
    uint32_t problem; /* enum device_problem: the last try's, and how many in a row had it */
    uint32_t tries;
    uint64_t said; /* a bit each problem that was said since the interface was deleted */
};

struct net_device {
    bool is_socket;
    atomic_bool gone; /* the other end has closed or the interface was deleted: nothing will ever arrive */
    atomic_bool detached; /* its interface was deleted; the descriptor may be attached to another */
    bool has_header;      /* a struct net_header stands before each frame on the descriptor */
    uint32_t offload;     /* TENDER_OFFLOAD_...: what may stand in it */
    bool segments;        /* we join and cut TCP segments (tcp_segments.h); one network of a VM at most */
    bool drained;         /* the last batch took all there was; the vCPU's thread alone looks */
    struct net_link link; /* for the process that holds the VM */
};
_Static_assert(sizeof(struct net_device) <= DEVICE_OWN_BYTES, "it fits");

struct net_vm {
    /* A device is or was `detached`: net_check_detached() looks after it. The next two are the vCPU's
     * thread's. */
    atomic_bool needs_check;
    bool told;        /* EVENT_NETWORK was left with, and what came of it has not been looked at */
    uint64_t look_ns; /* when to leave with the next */

    struct tcp_cut cut;   /* of the device with `segments` */
    atomic_bool cut_busy; /* a thread is at it: another finds no frame */
    atomic_bool cut_left; /* segments of it have not been taken yet */
    struct net_ring ring;
};
_Static_assert(sizeof(struct net_vm) <= KIND_OWN_BYTES, "it fits");

static inline struct net_vm *net_vm(const struct vm *vm)
{
    return (void *)(uintptr_t)vm->kinds[MFT_NET_BASIC];
}

/* Of a device that is a network. */
static inline struct net_device *net_of(const struct vm_device *device)
{
    return (void *)(uintptr_t)device->own;
}

static inline bool is_net(const struct vm_device *device)
{
    return device->type == MFT_NET_BASIC;
}

#endif
