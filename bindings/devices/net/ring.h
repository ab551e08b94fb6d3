/*
 * The network ring of Solo5 0.11 and later: frames by entries in shared memory instead of an exit each.
 *
 *   guest:  entry, ent_tail+1, then `out` to port 0x600 if needs_kick; a read turns until its commit is there
 *   host:   each entry in order: one frame; for a read its commit, com_tail+1; then ent_head+1
 *
 * The guest may scribble anywhere in the ring, at any time. So the host's indices are its own (struct
 * net_ring), each word of an entry is read once, and one call serves HVT_RING_ENTRIES at most. A commit that
 * the guest has not taken is overwritten: that is its loss.
 *
 * Who serves: one thread at a time, which holds net_ring.serving. A kick is an exit, and the vCPU's thread
 * serves it at once: to wake another would take longer, and far longer where processors are busy. Only when
 * kicks come fast is the worker woken (ring_worker.c), and takes over once it runs: then the guest is told
 * not to kick, until nothing has come for a while. Who serves writes the ring, ring_counters,
 * net_device.gone, and vm.fault if it must end the run.
 */
#ifndef TENDER_RING_H
#define TENDER_RING_H

#include "hypercall.h"
#include "net.h"

/* Offers the ring in the zeroed memory at `shared`, which the guest shares; enum vm_ring_mode says how. NULL:
 * there is no such memory any more. */
void ring_offer(struct vm *vm, void *shared, uint32_t mode);

/* Serves what was posted. How many entries, or -1: the run is to end, and exit_stopped() says why. */
int32_t ring_serve(struct vm *vm);

/*
 * The same for the worker, which may take frames from the guest and send them later: while the guest reads
 * frame after frame, until a read finds none, or until RING_WAITING_MAX wait. ring_serve() sends what waits,
 * for a guest that pauses. What the guest sees does not change: a frame that waits is a copy.
 *
 * A guest that answers requests gets all requests that are there, and the answers leave together. So their
 * receiver is woken once and not for each, and the guest does not wait for one answer to be sent before it
 * reads the next request. A guest that only writes is served at once.
 *
 * Behind what waited, the worker gives its processor to whoever waits for it: most often the receiver, which
 * then asks again before the guest is told that there is no frame, and goes to sleep for it.
 */
int32_t ring_serve_busy(struct vm *vm);

/* The guest's index: what is posted. */
uint32_t ring_posted(const struct vm *vm);

/* From now on the guest kicks, or does not. */
void ring_want_kicks(struct vm *vm, bool wanted);

/* The guest has kicked, and the vCPU's thread sees it: serves, and perhaps wakes the worker. CONTINUE, or
 * EXIT. */
enum verdict ring_kicked(struct vm *vm);

/*
 * The guest has kicked at `now_ns`: whether kicks come so fast that a worker is worth its processor. What is
 * fast depends on what a kick costs, from a microsecond on bare metal to a hundred in a virtual machine. A
 * kick costs no more than the shortest time from one to the next, which a guest that empties its queue shows
 * soon. The vCPU's thread.
 */
bool ring_kicks_come_fast(struct net_ring *ring, uint64_t now_ns);

/* What sixteen kicks cost, within bounds. Any thread. */
uint64_t ring_quick_ns(const struct net_ring *ring);

/* The guest runs no more, and there is an event: ends the worker and serves what is left. If the event is a
 * halt, and an entry posted before it ends the run, that becomes the event. */
void ring_end(struct vm *vm);

/* Wakes the worker, which is made if there is none; false if it cannot be. The vCPU's thread. */
bool ring_worker_wake(struct vm *vm);

/*
 * Makes the worker and waits until it sleeps, for a process that runs this guest alone and is about to lose
 * the right to make threads, and to end them: what a C library asks of the kernel for a thread's end differs
 * from one to the next. Such a worker is never joined. ring_worker_stop() waits until it has let go of the
 * guest, and the process's end is its own. Where no thread can be had, kicks are served as ever.
 */
void ring_worker_prepare(struct vm *vm);

/* Ends it, if there is one. Entries may be left. Whoever holds the VM, once its guest runs no more. */
void ring_worker_stop(struct vm *vm);

#endif
