/*
 * net_batch: many frames in one hypercall, in order on this thread. It sends all frames that the
 * guest wants to send, then receives the frames that wait, as long as there are buffers. A batch
 * saves exits, and one poll for each burst: with a timeout, one call sends, sleeps, and receives.
 *
 * The array is guest memory, and a frame may be received into it. So each frame's structure is
 * copied once, at its turn, and checked like that of a single hypercall (net_frame.c). The only
 * wait is at the end, so a stop takes effect when the batch is over, as after a single hypercall. A
 * batch is over after at most TENDER_NET_BATCH_MAX frames in each direction, and a read drops at
 * most DROPS_MAX frames (net_frame.c) before it reports that there is none.
 */
#include <stddef.h>
#include <string.h>

#include "entered.h"
#include "hypercall.h"
#include "net_frame.h"

#define FRAME_BYTES sizeof(struct tender_net_frame)

static struct tender_net_frame frame_at(const uint8_t *frames, uint32_t index)
{
    struct tender_net_frame frame;
    memcpy(&frame, frames + index * FRAME_BYTES, sizeof frame);
    return frame;
}

/* The fields of virtio's net header are a part of the frame's structure, in the same layout. */
_Static_assert(offsetof(struct tender_net_frame, reserved) - offsetof(struct tender_net_frame, flags) ==
                   sizeof(struct net_header),
               "the frame's fields are the header's");

static void put(const struct vm *vm, uint8_t *field, const void *from, size_t len)
{
    guest_put(&vm->memory, field, from, len, ENTERED_ANSWER);
}

static void answer(const struct vm *vm, uint8_t *frames, uint32_t index, uint32_t len, int32_t ret)
{
    uint8_t *frame = frames + index * FRAME_BYTES;
    put(vm, frame + offsetof(struct tender_net_frame, len), &len, sizeof len);
    put(vm, frame + offsetof(struct tender_net_frame, ret), &ret, sizeof ret);
}

static bool has_offload(const struct vm *vm)
{
    return vm->extensions & TENDER_FEATURE_NET_OFFLOAD;
}

static enum verdict send_frames(struct vm *vm, const struct tender_net_batch *batch, uint8_t *frames)
{
    for (uint32_t i = vm->resume.batch_done; i < batch->tx_count; i++) {
        const struct tender_net_frame frame = frame_at(frames, i);
        struct net_header header;
        memcpy(&header, &frame.flags, sizeof header);
        enum device_answer ret = net_send_from(vm, &vm->shared->counters, batch->handle, frame.data,
                                               frame.len, has_offload(vm) ? &header : NULL);
        if (ret == DEVICE_BAD_RANGE)
            return exit_bad_access(vm, frame.data, frame.len);
        answer(vm, frames, i, frame.len, ret);
    }
    vm->resume.batch_done = batch->tx_count; /* so that no frame is sent again if the wait is interrupted */
    return CONTINUE;
}

static enum verdict receive_frames(struct vm *vm, struct vm_device *device, struct tender_net_batch *batch,
                                   uint8_t *frames)
{
    for (uint32_t i = 0; i < batch->rx_count; i++) {
        const uint32_t index = batch->tx_count + i;
        const struct tender_net_frame frame = frame_at(frames, index);
        uint64_t len = frame.len;
        struct net_header header = {0};
        enum device_answer ret = net_receive_to(vm, &vm->shared->counters, batch->handle, frame.data, &len,
                                                has_offload(vm) ? &header : NULL);
        if (ret == DEVICE_BAD_RANGE)
            return exit_bad_access(vm, frame.data, frame.len);
        *net_drained(device) = ret != DEVICE_DONE;
        if (*net_drained(device))
            break;
        answer(vm, frames, index, (uint32_t)len, ret);
        if (has_offload(vm))
            put(vm, frames + index * FRAME_BYTES + offsetof(struct tender_net_frame, flags), &header,
                sizeof header);
        batch->rx_done = i + 1;
    }
    return CONTINUE;
}

enum verdict hc_net_batch(struct vm *vm, union hypercall_args *args)
{
    struct tender_net_batch *batch = &args->net_batch;
    if (net_needs_check(vm) && net_check_detached(vm) == EXIT)
        return EXIT;
    struct vm_device *device = net_device(vm, batch->handle);
    batch->tx_done = batch->rx_done = 0;
    batch->offload = 0;
    batch->ret = HVT_R_EINVAL;
    if (!device || batch->tx_count > TENDER_NET_BATCH_MAX || batch->rx_count > TENDER_NET_BATCH_MAX)
        return CONTINUE;
    const uint64_t bytes = (batch->tx_count + batch->rx_count) * FRAME_BYTES;
    uint8_t *frames = guest_buffer_at(&vm->memory, batch->frames, bytes);
    if (!frames)
        return exit_bad_access(vm, batch->frames, bytes);

    enum verdict verdict = send_frames(vm, batch, frames);
    /*
     * If the batch may wait and the last batch emptied the device, wait first: there is most likely
     * no frame, and a read that finds none costs about as much as the wait.
     */
    if (verdict == CONTINUE && !(batch->timeout_ns && *net_drained(device)))
        verdict = receive_frames(vm, device, batch, frames);
    if (verdict == CONTINUE && batch->timeout_ns && !batch->rx_done) {
        uint64_t ready_set;
        verdict = net_wait(vm, batch->timeout_ns, &ready_set);
        if (verdict == CONTINUE)
            verdict = receive_frames(vm, device, batch, frames);
    }
    if (verdict == EXIT)
        return EXIT;
    vm->shared->counters.net_batches++;
    batch->tx_done = batch->tx_count;
    batch->offload = net_offload(device);
    batch->ret = HVT_R_OK;
    return CONTINUE;
}
