/*
 * The network ring of Solo5 0.11 and later: frames by entries in shared memory instead of an exit each.
 *
 *   guest:  entry, ent_tail+1, then `out` to port 0x600 if needs_kick      a read waits, turning, for its
 * commit host:   each entry in order: one frame; for a read its commit, com_tail+1; then ent_head+1
 *
 * The guest may scribble anywhere in the ring, at any time. So the host's indices are its own (struct
 * net_ring), each word of an entry is read once, and one call serves HVT_RING_ENTRIES at most. A commit that
 * the guest has not taken is overwritten: that is its loss.
 *
 * Who serves: one thread at a time. Inline, that of the vCPU, at each kick. With a worker (ring_worker.c),
 * from the first kick on that one, until it is joined. It writes the ring, ring_counters, vm_device.gone, and
 * net_ring.fault if it must end the run.
 */
#ifndef TENDER_RING_H
#define TENDER_RING_H

#include "hypercall.h"

/* Offers the ring in the zeroed memory at `shared`, which the guest shares; enum vm_ring_mode says how. */
void ring_offer(struct vm *vm, struct hvt_net_ring *shared, uint32_t mode);

/* Serves what was posted. How many entries, or -1: the run is to end, and leave_stopped() says why. */
int32_t ring_serve(struct vm *vm);

/* Whether anything is posted that is not served. */
bool ring_is_waiting(const struct vm *vm);

/* From now on the guest kicks, or does not. */
void ring_want_kicks(struct vm *vm, bool wanted);

/* The guest has kicked, and the vCPU's thread sees it: serves, or wakes who does. CONTINUE, or LEAVE. */
enum verdict ring_kicked(struct vm *vm);

/* The guest runs no more: ends the worker and serves what is left. `verdict` is LEAVE, with its event; if
 * that is a halt, and an entry posted before it ends the run, that is the event. */
void ring_end(struct vm *vm);

/* A thread takes over, the caller's; 0 or -errno, and then nothing has changed. Its kicks come by kick_fd. */
int ring_worker_start(struct vm *vm);

/* Ends it, if there is one. Entries may be left. */
void ring_worker_stop(struct vm *vm);

#endif
