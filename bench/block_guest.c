/*
 * The guest of `tender bench block`: what a request to a disk costs a guest. Built as guest_world.h says.
 *
 *     read|write seq|rand SIZE COUNT [WAY]
 *
 * makes COUNT requests of SIZE bytes over the whole disk `storage`, after a tenth as many that are not
 * counted, and prints "read seq SIZE COUNT NANOSECONDS". A way is how requests reach the host, a row of
 * `ways`; "call", one request a call and done when it returns, is the default.
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

/* Each makes `count` requests and returns when all are done; false if the host refused one. */
static const struct way {
    const char *name;
    bool (*make)(bool write, struct pattern *at, uint64_t size, uint64_t count);
} ways[] = {
    {"call", by_call},
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
    bool seq = take_word(&at, "seq"), rand = take_word(&at, "rand");
    uint64_t size = take_number(&at), count = take_number(&at), capacity = 0;
    const struct way *way = choose_way(at);
    if (!world_block_open("storage", &disk, &capacity) || !(read || write) || !(seq || rand) || !size ||
        size > SIZE_MAX_BYTES || size > capacity || !count || !way) {
        say("usage: read|write seq|rand SIZE COUNT [WAY]\n");
        return 1;
    }
    struct pattern pattern = pattern_of(rand, size, capacity);
    bool done = way->make(write, &pattern, size, count / 10);
    uint64_t begin = world_now_ns();
    done = done && way->make(write, &pattern, size, count);
    uint64_t end = world_now_ns();
    if (!done) {
        say("a request was refused\n");
        return 2;
    }
    say(write ? "write " : "read ");
    say(rand ? "rand " : "seq ");
    say_number(size);
    say(" ");
    say_number(count);
    say(" ");
    say_number(end - begin);
    say("\n");
    return 0;
}
