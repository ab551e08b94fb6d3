/*
 * What a guest ABI's front (guest_abi/hvt) and the ring ask of networks: one frame, sent or taken, and a wait
 * for the next. A network is the back: it knows no structure of a guest's. The rules are in net_frame.c.
 */
#ifndef TENDER_NET_FRAME_H
#define TENDER_NET_FRAME_H

#include "hypercall.h"
#include "net.h"

/*
 * Sends [gpa, gpa + len), or drops it and counts that; takes one frame of at most *len bytes to gpa, *len is
 * then its length. Two threads may be in these for one VM, each with counters of its own.
 *
 * A frame that is longer than its buffer is dropped and counted, never cut.
 *
 * `header` NULL: of a plain frame. Then one that comes has its checksum completed here, and one that stands
 * for many packets is dropped and counted.
 */
enum device_answer net_send_from(struct vm *vm, struct vm_counters *counters, uint64_t handle, gpa_t gpa,
                                 uint64_t len, const struct net_header *header);
enum device_answer net_receive_to(struct vm *vm, struct vm_counters *counters, uint64_t handle, gpa_t gpa,
                                  uint64_t *len, struct net_header *header);

/* The same of a frame that is ours to read. */
enum device_answer net_send(struct vm *vm, struct vm_counters *counters, struct vm_device *device,
                            const void *data, uint64_t len, const struct net_header *header);

/* Sends what was joined; a device whose segments are ours to join. False: the kernel refuses it, and nothing
 * was sent or counted. */
bool net_send_joined(const struct vm_device *device, struct vm_counters *counters,
                     const struct tcp_joined *joined);

/* The network device of this handle, or NULL. */
static inline struct vm_device *net_device(struct vm *vm, uint64_t handle)
{
    if (handle >= vm->device_end || !is_net(&vm->devices[handle]))
        return NULL;
    return &vm->devices[handle];
}

/* TENDER_OFFLOAD_...: what a frame's header may ask for. */
static inline uint32_t net_offload(const struct vm_device *device)
{
    return net_of(device)->offload;
}

/* Whether the last look found no frame, as whoever looked has left it; the vCPU's thread alone. */
static inline bool *net_drained(const struct vm_device *device)
{
    return &net_of(device)->drained;
}

/*
 * A TAP whose interface was deleted has nothing to read and nowhere to write, and its ppoll() returns at
 * once; but the same descriptor may be attached to a new interface (TUNSETIFF), by us or by who gave it to
 * us. So it leaves the poll set, and the run is left with EVENT_NETWORK: at once, and then so often that a
 * new interface is found soon. Who holds the VM looks, may attach it, and calls the run function again.
 *
 * net_check_detached() is for the beginning of each call of a network, before anything is moved, where
 * net_needs_check(). CONTINUE; or EXIT, and the same call is made again by hypercall_resume().
 */
enum verdict net_check_detached(struct vm *vm);
static inline bool net_needs_check(const struct vm *vm)
{
    return __builtin_expect(atomic_load_explicit(&net_vm(vm)->needs_check, memory_order_relaxed), 0);
}

/* The interface of this TAP is gone; `counters` are the thread's. Any thread that serves. */
void net_note_detached(struct vm *vm, struct vm_device *device, struct vm_counters *counters);

/* Waits until a frame waits for any device, or the time is over: a bit a handle, none when it is. EXIT if
 * that was interrupted: the same call, made again by hypercall_resume(), waits for the rest (net_wait.c). */
enum verdict net_wait(struct vm *vm, uint64_t timeout_ns, uint64_t *ready_set);

#endif
