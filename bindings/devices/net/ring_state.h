/* The network ring, as its host sees it; what is done with it is in ring.h. */
#ifndef TENDER_RING_STATE_H
#define TENDER_RING_STATE_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "tcp_segments.h"

#define RING_WAITING_MAX TCP_JOINED_MAX /* what is posted together leaves together */

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
    pid_t process; /* that has it */
    int wake_fd;   /* eventfd: made readable to wake it */
    atomic_bool quit;
};

#endif
