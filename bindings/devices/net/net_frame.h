/*
 * The functions of networks that the hypercall handlers of a guest ABI (guest_abi/hvt) and the ring
 * use: they send or take one frame, or wait for one. Networks do not know the guest's structures.
 * The rules are in net_frame.c.
 */
#ifndef TENDER_NET_FRAME_H
#define TENDER_NET_FRAME_H

#include "hypercall.h"
#include "net.h"

/*
 * net_send_from() sends the frame [gpa, gpa + len), or drops and counts it. net_receive_to() takes
 * one frame of at most *len bytes to `gpa` and sets *len to its length. Two threads may be in these
 * functions for one VM, each with counters of its own.
 *
 * A received frame that is longer than its buffer is dropped and counted, never truncated.
 *
 * `header` NULL: the frame is plain. The checksum of a received frame is then completed here, and a
 * frame that stands for many packets is dropped and counted.
 */
enum device_answer net_send_from(struct vm *vm, struct vm_counters *counters, uint64_t handle, gpa_t gpa,
                                 uint64_t len, const struct net_header *header);
enum device_answer net_receive_to(struct vm *vm, struct vm_counters *counters, uint64_t handle, gpa_t gpa,
                                  uint64_t *len, struct net_header *header);

/* The same as net_send_from(), for a frame at a host address. */
enum device_answer net_send(struct vm *vm, struct vm_counters *counters, struct vm_device *device,
                            const void *data, uint64_t len, const struct net_header *header);

/*
 * Sends joined segments to a device with `segments`. Returns false if the kernel refuses them:
 * nothing was then sent or counted.
 */
bool net_send_joined(const struct vm_device *device, struct vm_counters *counters,
                     const struct tcp_joined *joined);

/* Returns the network device of this handle, or NULL. */
static inline struct vm_device *net_device(struct vm *vm, uint64_t handle)
{
    if (handle >= vm->device_end || !is_net(&vm->devices[handle]))
        return NULL;
    return &vm->devices[handle];
}

/* Returns the TENDER_OFFLOAD_... bits that a frame's header may ask for. */
static inline uint32_t net_offload(const struct vm_device *device)
{
    return net_of(device)->offload;
}

/*
 * Whether the last batch found no further frame. The caller reads and sets it; only the vCPU's
 * thread may.
 */
static inline bool *net_drained(const struct vm_device *device)
{
    return &net_of(device)->drained;
}

/*
 * A TAP whose interface was deleted can neither be read nor written, and a ppoll() on it returns
 * immediately. But the same descriptor may be attached to a new interface (TUNSETIFF), by Tender or
 * by the process that gave it to Tender. So the descriptor leaves the poll set, and the run exits
 * with EVENT_NETWORK: first immediately, and then repeatedly, so that a new interface is found
 * soon. The holder of the VM checks the interface, may attach a new one, and calls the run function
 * again.
 *
 * Call net_check_detached() if net_needs_check() is true, at the beginning of each network
 * hypercall, before any transfer. It returns CONTINUE, or EXIT; after EXIT, hypercall_resume()
 * makes the same call again.
 */
enum verdict net_check_detached(struct vm *vm);
static inline bool net_needs_check(const struct vm *vm)
{
    return __builtin_expect(atomic_load_explicit(&net_vm(vm)->needs_check, memory_order_relaxed), 0);
}

/*
 * Notes that the interface of this TAP is gone. Any thread that serves may call it, with its own
 * `counters`.
 */
void net_note_detached(struct vm *vm, struct vm_device *device, struct vm_counters *counters);

/*
 * Waits until a device has a frame or the time is over, and sets one bit per ready handle. Returns
 * EXIT if it was interrupted: the same call, made again by hypercall_resume(), waits for the rest
 * of the time (net_wait.c).
 */
enum verdict net_wait(struct vm *vm, uint64_t timeout_ns, uint64_t *ready_set);

#endif
