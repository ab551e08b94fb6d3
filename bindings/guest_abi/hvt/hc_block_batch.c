/*
 * block_batch: many requests in one hypercall. They are served in order on this thread, and each is
 * checked like a single hypercall. A batch saves exits. For a disk that is not in the host's cache
 * it also saves waiting: all reads that have to wait are begun before the first one is waited for.
 *
 * A batch can be long. Between its requests this file checks for a stop or a signal. If there is
 * one, the run loop exits, and the rest is served when the run continues. The array is guest
 * memory, and a request may read into it. So each request is copied once, at its turn. If an
 * earlier request overwrites it before that, the guest caused it.
 */
#include <stddef.h>
#include <string.h>

#include "block.h"
#include "entered.h"
#include "hvt_answer.h"

/*
 * There is a check for a stop after BLOCK_PIECE_BYTES. A request counts as its bytes and one of
 * these: CALL_BYTES if it goes to the disk, COPY_BYTES if it is a copy.
 */
#define CALL_BYTES (BLOCK_PIECE_BYTES / 8)
#define COPY_BYTES 4096u

/* A contiguous range that is not in the host's cache. */
struct cold_run {
    const struct vm_device *device; /* NULL: there is no range */
    uint64_t start;
    uint64_t end;
};

static void begin(const struct cold_run *run)
{
    if (run->device)
        block_begin_read(run->device, run->start, run->end - run->start);
}

static struct tender_block_request request_at(const uint8_t *requests, uint32_t index)
{
    struct tender_block_request request;
    memcpy(&request, requests + (size_t)index * sizeof request, sizeof request);
    return request;
}

/* A single range is not begun here: the read itself begins it, with the kernel's own read-ahead. */
static void begin_cold_reads(struct vm *vm, const uint8_t *requests, uint32_t count)
{
    struct cold_run run = {0};
    bool several = false;
    for (uint32_t i = 0; i < count; i++) {
        const struct tender_block_request request = request_at(requests, i);
        const struct vm_device *device =
            request.op == TENDER_BLOCK_READ ? block_device(vm, request.handle) : NULL;
        if (!device || !block_is_mapped(device) || !block_range_is_valid(device, request.offset, request.len))
            continue;
        const uint64_t cached = block_cached(device, request.offset, request.len);
        const uint64_t start = request.offset + cached, end = request.offset + request.len;
        if (start == end)
            continue;
        if (device == run.device && start == run.end) {
            run.end = end;
            continue;
        }
        several |= run.device != NULL;
        begin(&run);
        run = (struct cold_run){device, start, end};
    }
    if (several)
        begin(&run);
}

static bool is_cached(struct vm *vm, const struct tender_block_request *request)
{
    const struct vm_device *device = block_device(vm, request->handle);
    return device && block_cached(device, request->offset, request->len) == request->len;
}

static enum verdict serve_request(struct vm *vm, struct tender_block_request *request)
{
    const uint64_t handle = request->handle, offset = request->offset, len = request->len;
    enum device_answer answer = DEVICE_INVALID;
    if (request->op == TENDER_BLOCK_READ)
        answer = block_read_to(vm, handle, offset, request->data, len);
    else if (request->op == TENDER_BLOCK_WRITE)
        answer = block_write_from(vm, handle, offset, request->data, len);
    else if (request->op == TENDER_BLOCK_FLUSH)
        answer = block_flush(vm, handle);
    return hvt_answer(vm, answer, request->data, len, &request->ret);
}

enum verdict hc_block_batch(struct vm *vm, union hypercall_args *args)
{
    struct tender_block_batch *batch = &args->block_batch;
    const uint32_t count = batch->count;
    if (count > TENDER_BLOCK_BATCH_MAX) {
        batch->done = 0;
        batch->ret = HVT_R_EINVAL;
        return CONTINUE;
    }
    const uint64_t bytes = (uint64_t)count * sizeof(struct tender_block_request);
    uint8_t *requests = guest_buffer_at(&vm->memory, batch->requests, bytes);
    if (!requests)
        return exit_bad_access(vm, batch->requests, bytes);
    if (!vm->resume.batch_done)
        begin_cold_reads(vm, requests, count);
    uint64_t moved = 0;
    for (uint32_t i = vm->resume.batch_done; i < count; i++) {
        struct tender_block_request request = request_at(requests, i);
        moved += is_cached(vm, &request) ? COPY_BYTES : CALL_BYTES;
        if (serve_request(vm, &request) == EXIT) {
            vm->resume.batch_done = i; /* a part of a long request may be done */
            return EXIT;
        }
        vm->resume.bytes_done = 0;
        guest_put(&vm->memory,
                  requests + (size_t)i * sizeof request + offsetof(struct tender_block_request, ret),
                  &request.ret, sizeof request.ret, ENTERED_ANSWER);
        if (request.op == TENDER_BLOCK_FLUSH)
            moved = BLOCK_PIECE_BYTES; /* a flush takes long, so check for a stop after it */
        else if (request.ret == HVT_R_OK)
            moved += request.len;
        if (moved < BLOCK_PIECE_BYTES)
            continue;
        moved = 0;
        if (block_must_pause(vm)) {
            vm->resume.batch_done = i + 1;
            return exit_interrupted(vm);
        }
    }
    vm->shared->counters.block_batches++;
    batch->done = count;
    batch->ret = HVT_R_OK;
    return CONTINUE;
}
