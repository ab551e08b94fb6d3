/*
 * The guest of `python bench block`: the cost of a disk request for a guest. guest_world.h tells how it is
 * built.
 *
 *     read|write seq|rand|cold SIZE COUNT [WAY]
 *
 * It makes COUNT requests of SIZE bytes to the disk `storage`, after one pass over the whole disk that is not
 * counted, and prints "read seq SIZE COUNT NANOSECONDS". cold is rand without that pass. A way is how
 * requests reach the host: a row of `ways`. The default is "call", one request per call, which is done when
 * the call returns. "batch" makes 32 requests per call.
 */
#include "guest_world.h"

#include "block_pattern.h"

WORLD_MANIFEST(1, TENDER_BLOCK("storage"));

#define SIZE_MAX_BYTES 65536

static uint8_t buffer[SIZE_MAX_BYTES] __attribute__((aligned(4096)));
static world_disk disk;

static bool by_call(bool write, struct pattern *at, uint64_t size, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        uint64_t offset = pattern_next(at);
        if (!(write ? world_block_write(&disk, offset, buffer, size)
                    : world_block_read(&disk, offset, buffer, size)))
            return false;
    }
    return true;
}

#ifdef WORLD_HAS_BATCHES
#define BATCH 32

static bool by_batch(bool write, struct pattern *at, uint64_t size, uint64_t count)
{
    static uint8_t buffers[BATCH][SIZE_MAX_BYTES] __attribute__((aligned(4096)));
    struct tender_block_request requests[BATCH];
    while (count) {
        uint64_t now = count < BATCH ? count : BATCH;
        for (uint64_t i = 0; i < now; i++)
            requests[i] = world_request(&disk, write, pattern_next(at), buffers[i], size);
        if (!world_submit(requests, now))
            return false;
        count -= now;
    }
    return true;
}
#endif

/* Each function makes `count` requests and returns when all are done. It returns false if one was refused. */
static const struct way {
    const char *name;
    bool (*make)(bool write, struct pattern *at, uint64_t size, uint64_t count);
} ways[] = {
    {"call", by_call},
#ifdef WORLD_HAS_BATCHES
    {"batch", by_batch},
#endif
};

static const struct way *choose_way(const char *at)
{
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        const char *rest = at;
        if (!*at || (take_word(&rest, ways[i].name) && !*rest))
            return &ways[i];
    }
    return NULL;
}

WORLD_MAIN
{
    const char *at = WORLD_CMDLINE;
    bool read = take_word(&at, "read"), write = take_word(&at, "write");
    bool seq = take_word(&at, "seq"), cold = take_word(&at, "cold"), rand = cold || take_word(&at, "rand");
    uint64_t size = take_number(&at), count = take_number(&at), capacity = 0;
    const struct way *way = choose_way(at);
    if (!world_block_open("storage", &disk, &capacity) || !(read || write) || !(seq || rand) || !size ||
        size > SIZE_MAX_BYTES || size > capacity || !count || !way) {
        say("usage: read|write seq|rand|cold SIZE COUNT [WAY]\n");
        return 1;
    }
    struct pattern pattern = pattern_of(rand, size, capacity), warm = pattern_of(false, size, capacity);
    bool done = cold || way->make(write, &warm, size, warm.pieces);
    uint64_t begin = world_now_ns();
    done = done && way->make(write, &pattern, size, count);
    uint64_t end = world_now_ns();
    if (!done) {
        say("a request was refused\n");
        return 2;
    }
    say(write ? "write " : "read ");
    say(cold ? "cold " : rand ? "rand " : "seq ");
    say_number(size);
    say(" ");
    say_number(count);
    say(" ");
    say_number(end - begin);
    say("\n");
    return 0;
}
