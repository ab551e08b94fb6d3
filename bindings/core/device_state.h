/*
 * What devices keep in a VM: plain data, which only a device's own folder looks into. The core holds it, so
 * that a VM is one piece of memory and a handler finds its state without a search.
 */
#ifndef TENDER_DEVICE_STATE_H
#define TENDER_DEVICE_STATE_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "vm_types.h"

/* ---- devices/block/disk_map.h */

struct disk_map {
    uint8_t *hva;         /* NULL: not mapped, and nothing is ever served */
    uint64_t bytes;       /* whole pages */
    uint64_t *cached;     /* a bit a page: it was read or written */
    uint64_t *dirty;      /* a bit a page: it was written since the last flush */
    uint64_t dirty_start; /* the words of `dirty` that may have a bit */
    uint64_t dirty_end;
    uint64_t pages_noted; /* since all was forgotten last */
    uint32_t page_limit;
};

/* ---- devices/net/tcp_segments.h */

#define TCP_JOINED_MAX 48 /* segments of one large frame: 64 KiB of the usual 1448 bytes */

/* A large frame that is taken segment by segment. */
struct tcp_cut {
    uint8_t *frame; /* TCP_LARGE_MAX bytes and one more, which a guest may change at any time */
    uint32_t ip_at, tcp_at, head_len;
    uint32_t at, end; /* of the payload that is left; equal: nothing is */
    uint32_t segment_len, number;
};

/* ---- devices/net */

/* What is known of a TAP's interface by who opened the descriptor; devices/net/net_link.c. */
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

#define RING_WAITING_MAX TCP_JOINED_MAX /* what is posted together leaves together */

/* The network ring, as its host sees it (ring.h). */
struct net_ring {
    struct hvt_net_ring *shared; /* in guest memory; NULL: not offered */
    uint32_t mode;               /* enum vm_ring_mode */
    uint32_t ent_head;           /* ours: what the guest reads are copies, what it writes there is not read */
    uint32_t com_tail;
    bool found;       /* the last read brought a frame */
    uint32_t waiting; /* frames that were taken from the guest, and are still to be sent */
    struct {
        uint32_t handle, len;
    } waits[RING_WAITING_MAX];
    struct vm_event fault; /* set before `broken`, never after */
    atomic_bool broken;

    pthread_mutex_t serving; /* held by the thread that serves, the vCPU's or the worker */
    bool vcpu_serves; /* the vCPU's thread holds `serving`, and alone writes this: nobody else reads memory */
    uint64_t kicked_ns;    /* the last kick */
    uint64_t kick_cost_ns; /* at most: the shortest time between two */
    uint32_t quick_kicks;  /* how many came fast, one after the other */

    /* the worker (ring_worker.c), if there is one */
    bool has_worker;
    bool woken;     /* it may serve: before that it looks at nothing */
    bool gives_way; /* it may ask the kernel to run another thread in its place */
    bool kept;      /* made by ring_worker_prepare(): it stays to the end of the process */
    sem_t asleep;   /* of a kept one: posted once it sleeps, */
    sem_t done;     /* and once it leaves the guest's memory and the devices alone for good */
    pthread_t thread;
    int wake_fd; /* eventfd: made readable to wake it */
    atomic_bool quit;
};

#endif
