/* The host's state of the network ring; ring.h has the functions. */
#ifndef TENDER_RING_STATE_H
#define TENDER_RING_STATE_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "tcp_segments.h"

#define RING_WAITING_MAX TCP_JOINED_MAX /* so that frames that wait together can leave as one */

struct net_ring {
    struct hvt_net_ring *shared; /* in guest memory; NULL: not offered */
    uint32_t mode;               /* enum vm_ring_mode */
    uint32_t ent_head; /* the host's own indices: the guest reads copies, and its writes are not read */
    uint32_t com_tail;
    bool found;       /* the last read returned a frame */
    uint32_t waiting; /* the number of frames that were taken from the guest and not sent yet */
    struct {
        uint32_t handle, len;
    } waits[RING_WAITING_MAX];

    pthread_mutex_t serving; /* held by the thread that serves: the vCPU's or the worker */
    bool vcpu_serves;   /* the vCPU's thread holds `serving`, so no other reads memory; only it writes this */
    uint64_t kicked_ns; /* the time of the last kick */
    uint64_t kick_cost_ns; /* an upper limit: the shortest time between two kicks */
    uint32_t quick_kicks;  /* how many kicks came fast, one after the other */

    /* the worker (ring_worker.c), if there is one */
    bool has_worker;
    bool woken;     /* the worker may serve; before that it reads nothing */
    bool may_yield; /* the worker may call sched_yield() */
    bool kept;      /* made by ring_worker_prepare(): it lives until the process ends */
    sem_t asleep;   /* a kept worker posts it when it sleeps for the first time */
    sem_t done;     /* a kept worker posts it when it will never again use guest memory or devices */
    pthread_t thread;
    pid_t process; /* the process that made the thread */
    int wake_fd;   /* eventfd: made readable to wake it */
    atomic_bool quit;
};

#endif
