/*
 * The network ring of Solo5 0.11 and later: frames by entries in shared memory, instead of one exit
 * for each frame.
 *
 *   guest:  writes an entry and adds 1 to ent_tail, then executes `out` to port 0x600 if needs_kick
 *           is set; for a read it spins until the commit is there
 *   host:   serves each entry in order: transfers one frame, posts the commit of a read and adds 1
 *           to com_tail, and adds 1 to ent_head
 *
 * The guest may write anything anywhere in the ring, at any time. So the host keeps its own indices
 * (struct net_ring), reads each word of an entry once, and serves at most HVT_RING_ENTRIES entries
 * in one call. A commit that the guest has not taken may be overwritten. That harms only the guest.
 *
 * One thread at a time serves the ring: the one that holds net_ring.serving. A kick is an exit, and
 * the vCPU's thread serves the ring immediately. To wake another thread would take longer, and much
 * longer where processors are busy. The worker (ring_worker.c) is woken only when kicks come fast,
 * and serves once it runs. Then the guest is told not to kick, until nothing has come for a while.
 * The serving thread writes the ring, ring_counters, net_device.gone, and vm.fault if it must end
 * the run.
 */
#ifndef TENDER_RING_H
#define TENDER_RING_H

#include "hypercall.h"
#include "net.h"

/*
 * Offers the guest a ring in the zeroed memory at `shared`, which the guest shares. `mode` is an
 * enum vm_ring_mode. NULL: that memory no longer exists.
 */
void ring_offer(struct vm *vm, void *shared, uint32_t mode);

/*
 * Serves the posted entries. Returns their number, or -1 if the run must end; exit_stopped() has
 * the reason.
 */
int32_t ring_serve(struct vm *vm);

/*
 * The same for the worker, which may take frames from the guest and send them later. It holds
 * frames while the guest reads frame after frame, until a read finds none or RING_WAITING_MAX
 * frames wait. For a guest that pauses, ring_serve() sends the waiting frames. The guest sees no
 * difference, because a waiting frame is a copy.
 *
 * So a guest that answers requests gets all requests that are there, and its answers leave
 * together. Their receiver is woken once, not for each answer, and the guest does not wait until
 * one answer is sent before it reads the next request. The frames of a guest that only writes are
 * sent immediately.
 *
 * After it has sent the waiting frames, the worker yields its processor to a thread that waits for
 * it. Most often that is the receiver, which then sends the next request before the guest is told
 * that there is no frame and goes to sleep.
 */
int32_t ring_serve_busy(struct vm *vm);

/* Returns the guest's index of posted entries, ent_tail. */
uint32_t ring_posted(const struct vm *vm);

/* Tells the guest whether it must kick from now on. */
void ring_want_kicks(struct vm *vm, bool wanted);

/*
 * Handles a kick on the vCPU's thread: serves the ring, and wakes the worker if kicks come fast.
 * Returns CONTINUE or EXIT.
 */
enum verdict ring_kicked(struct vm *vm);

/*
 * Notes a kick at `now_ns`. Returns true if kicks come so fast that a worker is worth a processor.
 * How fast that is depends on the cost of a kick, which is from 1 us on bare metal to 100 us in a
 * virtual machine. A kick costs at most the shortest time from one kick to the next. A guest that
 * empties its queue soon shows that time. Only for the vCPU's thread.
 */
bool ring_kicks_come_fast(struct net_ring *ring, uint64_t now_ns);

/* Returns the cost of sixteen kicks, within bounds. For any thread. */
uint64_t ring_quick_ns(const struct net_ring *ring);

/*
 * Call it when the guest has ended and the event is filled. It ends the worker and serves the
 * entries that are left. If the event is a halt, and an entry that was posted before it ends the
 * run, that becomes the event.
 */
void ring_end(struct vm *vm);

/*
 * Wakes the worker, and makes it first if there is none. False if that fails. Only for the vCPU's
 * thread.
 */
bool ring_worker_wake(struct vm *vm);

/*
 * Makes the worker and waits until it sleeps. This is for a process that runs only this guest and
 * is about to give up the right to make threads and to end them, because C libraries differ in the
 * system calls that end a thread. Such a worker is never joined: ring_worker_stop() waits until the
 * worker no longer uses the guest, and the worker ends with the process. If no thread can be made,
 * the vCPU's thread serves all kicks.
 */
void ring_worker_prepare(struct vm *vm);

/*
 * Ends the worker, if there is one. Entries may be left. For the holder of the VM, when its guest
 * does not run.
 */
void ring_worker_stop(struct vm *vm);

#endif
