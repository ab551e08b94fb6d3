/*
 * The state of a network, and the state of all networks of a VM together. Only this folder uses
 * them; struct vm (core/vm.h) has the space for them.
 */
#ifndef TENDER_NET_H
#define TENDER_NET_H

#include <stdatomic.h>

#include "device_ops.h"
#include "ring_state.h"
#include "tcp_segments.h"

/* The state of a TAP's interface in the process that opened the descriptor; net_link.c. */
struct net_link {
    char name[16];     /* the name of the interface when it was attached; empty: not a TAP */
    bool named;        /* Tender opened the interface by that name; false: it got a descriptor */
    bool again;        /* if the interface is deleted, a new one of that name is attached */
    bool lost;         /* it was reported that the interface is gone */
    uint64_t next_ns;  /* when to try to attach again */
    uint32_t problem;  /* enum device_problem: the problem of the last try */
    uint32_t tries;    /* how many tries in a row had that problem */
    uint64_t reported; /* one bit for each problem that was reported since the interface was deleted */
};

struct net_device {
    bool is_socket;
    atomic_bool gone;     /* the other end has closed: nothing will ever arrive */
    atomic_bool detached; /* its interface was deleted; the descriptor may be attached to another */
    bool has_header;      /* each frame on the descriptor has a struct net_header before it */
    uint32_t offload;     /* TENDER_OFFLOAD_... bits: the offloads that the header may ask for */
    bool segments;        /* Tender joins and cuts TCP segments (tcp_segments.h); for one network of a VM */
    bool drained;         /* the last batch took all frames; only the vCPU's thread uses it */
    struct net_link link; /* for the process that holds the VM */
};
_Static_assert(sizeof(struct net_device) <= DEVICE_OWN_BYTES, "it fits");

struct net_vm {
    /* A device is or was `detached`, so net_check_detached() must be called. */
    atomic_bool needs_check;
    /* Only the vCPU's thread uses the next two. */
    bool reported;           /* the run exited with EVENT_NETWORK, and its result was not checked yet */
    uint64_t next_report_ns; /* when to exit with the next EVENT_NETWORK */

    struct tcp_cut cut;   /* for the device with `segments` */
    atomic_bool cut_busy; /* a thread uses `cut`: another thread then finds no frame */
    atomic_bool cut_left; /* `cut` has segments that were not taken yet */
    struct net_ring ring;
};
_Static_assert(sizeof(struct net_vm) <= KIND_OWN_BYTES, "it fits");

static inline struct net_vm *net_vm(const struct vm *vm)
{
    return (void *)(uintptr_t)vm->kinds[MFT_NET_BASIC];
}

/* The state of a device that is a network. */
static inline struct net_device *net_of(const struct vm_device *device)
{
    return (void *)(uintptr_t)device->own;
}

static inline bool is_net(const struct vm_device *device)
{
    return device->type == MFT_NET_BASIC;
}

#endif
