/*
 * Many frames in one hypercall, if the tender grants the net batch. Each device has two queues,
 * which hold copies of frames.
 *
 *   in:   A batch brings all frames that wait, up to the size of the queue. net_read() takes them one by
 *         one, and poll_wait() reports them, both without leaving the guest. The next net_read() or
 *         poll_wait() fills an empty queue again.
 *   out:  A frame that is written while received frames wait in the queue is held. It goes with the
 *         batch that fetches the next frames. So an application that reads until the queue is empty
 *         sends N frames and receives N frames with one exit. If no received frame waits, the frame
 *         leaves immediately.
 *
 * So a held frame leaves when the application has read all received frames of the queue, and after
 * all frames that were written before it. An application may compute for a long time over each
 * frame. If it goes on writing, HOLD_NS limits how long a frame is held; otherwise it calls
 * net_flush().
 */
#include "kernel.h"

#define FRAMES_MAX  32u /* in one queue; more would not fit into the L1 cache, and would save little */
#define FRAMES_MIN  2u
#define QUEUE_BYTES 0x20000u /* limits one queue: if frames are large, it holds fewer */
#define FRAME_MIN   2048u    /* the smallest capacity for one frame, in bytes */
#define HOLD_NS     50000u

struct net_queue {
    uint64_t handle;
    uint32_t capacity; /* bytes for one frame */
    uint32_t asked; /* buffer size of the last net_read(), at most `capacity`; 0: there was no net_read() */
    uint32_t frames;
    uint32_t in_next, in_end; /* frames that wait to be read */
    uint32_t out_count;
    uint64_t held_since_ns; /* when the first held frame was written */
    uint64_t dropped;       /* frames of the queue that were too long for a net_read()'s smaller buffer */
    bool drained;           /* the last batch emptied the device; no net_read() has returned AGAIN since */
    uint8_t *in, *out;
    uint32_t in_len[FRAMES_MAX], out_len[FRAMES_MAX];
};

static struct net_queue *queues[MFT_MAX_ENTRIES];
static struct net_queue *sole; /* the queue if there is one network device: its batch can wait for input */

static uint32_t nets_attached(void)
{
    const struct mft *manifest = guest_manifest();
    uint32_t count = 0;
    for (uint32_t i = 1; i < manifest->entries; i++) {
        count += manifest->e[i].type == MFT_NET_BASIC && manifest->e[i].attached;
    }
    return count;
}

bool net_queue_open(struct net_device *device)
{
    struct tender_net_batch ask = {.handle = device->handle};
    if (!gate_net_batch(&ask) || ask.ret != HVT_R_OK) {
        return false;
    }
    device->offload = ask.offload;
    if (device->offload || queues[device->handle]) {
        return true; /* frames with an offload use no queue: the application provides the buffers */
    }
    uint32_t capacity = ((uint32_t)net_frame_bytes(device) + 63) & ~63u;
    capacity = capacity < FRAME_MIN ? FRAME_MIN : capacity;
    uint32_t frames = QUEUE_BYTES / capacity;
    frames = frames > FRAMES_MAX ? FRAMES_MAX : frames < FRAMES_MIN ? FRAMES_MIN : frames;
    struct net_queue *queue = guest_calloc(1, sizeof(*queue));
    uint8_t *buffers = guest_alloc((size_t)2 * frames * capacity);
    if (!queue || !buffers) {
        guest_free(queue);
        guest_free(buffers);
        return false;
    }
    queue->handle = device->handle;
    queue->capacity = capacity;
    queue->frames = frames;
    queue->in = buffers;
    queue->out = buffers + (size_t)frames * capacity;
    queues[device->handle] = queue;
    sole = nets_attached() == 1 ? queue : NULL;
    return true;
}

struct net_queue *net_queue_of(const struct net_device *device)
{
    return device->handle < MFT_MAX_ENTRIES ? queues[device->handle] : NULL;
}

static bool is_empty(const struct net_queue *queue)
{
    return queue->in_next == queue->in_end;
}

/* Sends the held frames and, if the receive queue is empty, fetches frames. */
static void exchange(struct net_queue *queue, uint64_t timeout_ns)
{
    struct tender_net_frame frames[2 * FRAMES_MAX];
    struct tender_net_batch batch = {.handle = queue->handle,
                                     .frames = gpa_of(frames),
                                     .tx_count = queue->out_count,
                                     .rx_count = is_empty(queue) && queue->asked ? queue->frames : 0,
                                     .timeout_ns = timeout_ns};
    for (uint32_t i = 0; i < batch.tx_count; i++) {
        frames[i] = (struct tender_net_frame){.data = gpa_of(queue->out + (size_t)i * queue->capacity),
                                              .len = queue->out_len[i]};
    }
    struct tender_net_frame *in = frames + batch.tx_count;
    for (uint32_t i = 0; i < batch.rx_count; i++) {
        in[i] = (struct tender_net_frame){.data = gpa_of(queue->in + (size_t)i * queue->capacity),
                                          .len = queue->asked};
    }
    gate_net_batch(&batch);
    queue->out_count = 0;
    if (batch.rx_count == 0) {
        return;
    }
    for (uint32_t i = 0; i < batch.rx_done; i++) {
        queue->in_len[i] = in[i].len;
    }
    queue->in_next = 0;
    queue->in_end = batch.rx_done;
    queue->drained = batch.rx_done < batch.rx_count;
}

static void send_held(struct net_queue *queue)
{
    struct tender_net_frame frames[FRAMES_MAX];
    struct tender_net_batch batch = {
        .handle = queue->handle, .frames = gpa_of(frames), .tx_count = queue->out_count};
    for (uint32_t i = 0; i < batch.tx_count; i++) {
        frames[i] = (struct tender_net_frame){.data = gpa_of(queue->out + (size_t)i * queue->capacity),
                                              .len = queue->out_len[i]};
    }
    if (batch.tx_count) {
        gate_net_batch(&batch);
    }
    queue->out_count = 0;
}

static enum guest_result send_now(const struct net_queue *queue, const void *frame, size_t len)
{
    struct hvt_net_write call = {.handle = queue->handle, .data = gpa_of(frame), .len = len};
    gate_net_write(&call);
    return (enum guest_result)call.ret;
}

enum guest_result net_queue_write(struct net_queue *queue, const void *frame, size_t len)
{
    const bool last = is_empty(queue);
    if (len > queue->capacity || (last && queue->out_count == 0)) {
        send_held(queue);
        return send_now(queue, frame, len);
    }
    if (queue->out_count == queue->frames) {
        send_held(queue);
    }
    const uint64_t now_ns = clock_monotonic();
    if (queue->out_count == 0) {
        queue->held_since_ns = now_ns;
    }
    memcpy(queue->out + (size_t)queue->out_count * queue->capacity, frame, len);
    queue->out_len[queue->out_count++] = (uint32_t)len;
    if (last) {
        exchange(queue, 0);
    } else if (now_ns - queue->held_since_ns > HOLD_NS) {
        send_held(queue);
    }
    return GUEST_OK;
}

/* Takes the next frame that fits into `size` bytes. Returns false if there is none. */
static bool take(struct net_queue *queue, void *frame, size_t size, size_t *len)
{
    while (!is_empty(queue)) {
        const uint32_t at = queue->in_next++;
        if (queue->in_len[at] <= size) {
            *len = queue->in_len[at];
            memcpy(frame, queue->in + (size_t)at * queue->capacity, *len);
            return true;
        }
        queue->dropped++;
    }
    return false;
}

enum guest_result net_queue_read(struct net_queue *queue, void *frame, size_t size, size_t *len)
{
    if (size == 0) {
        return GUEST_AGAIN;
    }
    queue->asked = size < queue->capacity ? (uint32_t)size : queue->capacity;
    if (take(queue, frame, size, len)) {
        return GUEST_OK;
    }
    if (!(queue->drained && queue->out_count == 0)) {
        exchange(queue, 0);
    }
    if (take(queue, frame, size, len)) {
        return GUEST_OK;
    }
    queue->drained = false; /* the caller is now told, so the next call asks the host again */
    return GUEST_AGAIN;
}

uint64_t net_dropped(const struct net_device *device)
{
    const struct net_queue *queue = net_queue_of(device);
    return queue ? queue->dropped : 0;
}

/* ---- For poll_wait() and guest_exit() ---- */

void net_queues_flush(void)
{
    for (uint32_t handle = 0; handle < MFT_MAX_ENTRIES; handle++) {
        if (queues[handle]) {
            send_held(queues[handle]);
        }
    }
}

static int ready(uint64_t *ready_set)
{
    int count = 0;
    *ready_set = 0;
    for (uint32_t handle = 0; handle < MFT_MAX_ENTRIES; handle++) {
        if (queues[handle] && !is_empty(queues[handle])) {
            *ready_set |= (uint64_t)1 << handle;
            count++;
        }
    }
    return count;
}

bool net_queues_wait(uint64_t timeout_ns, uint64_t *ready_set, int *count)
{
    *count = ready(ready_set);
    if (*count) {
        return true;
    }
    if (!sole || !sole->asked) { /* before the first net_read(), the buffer size is not known */
        net_queues_flush();
        return false;
    }
    exchange(sole, timeout_ns);
    *count = ready(ready_set);
    return true;
}

/* ---- The application's own batches ---- */

void net_flush(const struct net_device *device)
{
    struct net_queue *queue = net_queue_of(device);
    if (queue) {
        send_held(queue);
    }
}

static uint32_t read_each(const struct net_device *device, struct tender_net_frame *frames, uint32_t count)
{
    uint32_t done = 0;
    for (size_t len; done < count; done++) {
        struct tender_net_frame *frame = &frames[done];
        if (net_read(device, (void *)frame->data, frame->len, &len) != GUEST_OK) {
            break;
        }
        frame->len = (uint32_t)len;
        frame->ret = GUEST_OK;
    }
    return done;
}

/* Returns true if the frame asks for an offload: its receiver has something left to do. */
static bool asks_for_offload(const struct tender_net_frame *frame)
{
    return (frame->flags & TENDER_NET_NEEDS_CSUM) || frame->gso_type;
}

static bool any_asks_for_offload(const struct tender_net_frame *frames, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (asks_for_offload(&frames[i])) {
            return true;
        }
    }
    return false;
}

/*
 * Does the work of a batch with one call per frame. It is used where no batch is granted, or where
 * a frame asks for an offload that the device does not have.
 */
static void submit_each(const struct net_device *device, struct tender_net_batch *batch,
                        struct tender_net_frame *frames)
{
    for (uint32_t i = 0; i < batch->tx_count; i++) {
        enum guest_result sent = asks_for_offload(&frames[i])
                                     ? GUEST_EINVAL
                                     : net_write(device, (const void *)frames[i].data, frames[i].len);
        frames[i].ret = (int32_t)sent;
    }
    net_flush(device);
    batch->rx_done = read_each(device, frames + batch->tx_count, batch->rx_count);
    if (batch->timeout_ns && !batch->rx_done) {
        poll_wait(batch->timeout_ns, NULL);
        batch->rx_done = read_each(device, frames + batch->tx_count, batch->rx_count);
    }
    batch->ret = HVT_R_OK;
}

enum guest_result net_submit(const struct net_device *device, struct tender_net_frame *frames,
                             size_t tx_count, size_t rx_count, uint64_t timeout_ns, size_t *received)
{
    struct net_queue *queue = net_queue_of(device);
    size_t queued = 0;
    *received = 0;
    if (tx_count > TENDER_NET_BATCH_MAX || rx_count > TENDER_NET_BATCH_MAX) {
        return GUEST_EINVAL;
    }
    struct tender_net_batch batch = {.handle = device->handle,
                                     .frames = gpa_of(frames),
                                     .tx_count = (uint32_t)tx_count,
                                     .rx_count = (uint32_t)rx_count,
                                     .timeout_ns = timeout_ns};
    if (queue) {
        const uint32_t waiting = queue->in_end - queue->in_next;
        send_held(queue);
        if (waiting) { /* the frames in the queue came first, so they are delivered first */
            queued =
                read_each(device, frames + tx_count, batch.rx_count < waiting ? batch.rx_count : waiting);
            batch.rx_count = 0;
            batch.timeout_ns = 0;
        }
    }
    if (queued && !batch.tx_count) {
        batch.ret = HVT_R_OK;
    } else if ((!device->offload && any_asks_for_offload(frames, tx_count)) || !gate_net_batch(&batch)) {
        submit_each(device, &batch, frames);
    }
    *received = queued + batch.rx_done;
    return (enum guest_result)batch.ret;
}
