/*
 * The functions that a benchmark's guest needs from its unikernel library, with names of their own. So one
 * source can be built in two ways: by Tender's SDK, and with -DSOLO5 by Solo5's compiler, for hvt and for
 * spt. Each function is exactly one request to the host.
 */
#ifndef BENCH_GUEST_WORLD_H
#define BENCH_GUEST_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WORLD_FOREVER_NS 3600000000000

#ifdef SOLO5

#include "solo5.h"

#define WORLD_ONE_BY_ONE

typedef solo5_handle_t world_net;
typedef solo5_handle_t world_disk;

#define WORLD_MANIFEST(...) /* Solo5's elftool makes it from a file of its own */
#define WORLD_MAIN          int solo5_app_main(const struct solo5_start_info *world_start)
#define WORLD_CMDLINE       (world_start->cmdline)

static inline void world_print(const char *text, size_t len)
{
    solo5_console_write(text, len);
}

static inline uint64_t world_now_ns(void)
{
    return solo5_clock_monotonic();
}

static inline void world_wait(void)
{
    solo5_handle_set_t ready;
    solo5_yield(solo5_clock_monotonic() + WORLD_FOREVER_NS, &ready);
}

static inline bool world_net_open(const char *name, world_net *net, uint8_t mac[6])
{
    struct solo5_net_info info;
    if (solo5_net_acquire(name, net, &info) != SOLO5_R_OK)
        return false;
    for (size_t i = 0; i < 6; i++)
        mac[i] = info.mac_address[i];
    return true;
}

static inline bool world_net_write(const world_net *net, const uint8_t *frame, size_t len)
{
    return solo5_net_write(*net, frame, len) == SOLO5_R_OK;
}

static inline bool world_net_read(const world_net *net, uint8_t *frame, size_t size, size_t *len)
{
    return solo5_net_read(*net, frame, size, len) == SOLO5_R_OK;
}

static inline bool world_block_open(const char *name, world_disk *disk, uint64_t *capacity)
{
    struct solo5_block_info info;
    if (solo5_block_acquire(name, disk, &info) != SOLO5_R_OK)
        return false;
    *capacity = info.capacity;
    return true;
}

static inline bool world_block_read(const world_disk *disk, uint64_t offset, uint8_t *data, size_t len)
{
    return solo5_block_read(*disk, offset, data, len) == SOLO5_R_OK;
}

static inline bool world_block_write(const world_disk *disk, uint64_t offset, const uint8_t *data, size_t len)
{
    return solo5_block_write(*disk, offset, data, len) == SOLO5_R_OK;
}

#else

#include <tender/guest.h>

/* Only the gate: with batches the library would make fewer requests to the host than the program makes calls
 * (net_ways_guest.c). */
#define WORLD_ONE_BY_ONE TENDER_EXTENSION_NOTE(TENDER_FEATURE_GATE)

typedef struct net_device world_net;
typedef struct block_device world_disk;

#define WORLD_MANIFEST(...) TENDER_MANIFEST(__VA_ARGS__)
#define WORLD_MAIN          int main(int argc __attribute__((unused)), char **argv __attribute__((unused)))
#define WORLD_CMDLINE       guest_cmdline()

static inline void world_print(const char *text, size_t len)
{
    console_write(text, len);
}

static inline uint64_t world_now_ns(void)
{
    return clock_monotonic();
}

static inline void world_wait(void)
{
    poll_wait(WORLD_FOREVER_NS, NULL);
}

static inline bool world_net_open(const char *name, world_net *net, uint8_t mac[6])
{
    while (guest_alloc(65536)) /* without space for copies, the library does not use a host's ring */
        ;
    if (net_open(name, net) != GUEST_OK)
        return false;
    memcpy(mac, net->mac, 6);
    return true;
}

static inline bool world_net_write(const world_net *net, const uint8_t *frame, size_t len)
{
    return net_write(net, frame, len) == GUEST_OK;
}

static inline bool world_net_read(const world_net *net, uint8_t *frame, size_t size, size_t *len)
{
    return net_read(net, frame, size, len) == GUEST_OK;
}

static inline bool world_block_open(const char *name, world_disk *disk, uint64_t *capacity)
{
    if (block_open(name, disk) != GUEST_OK)
        return false;
    *capacity = disk->capacity;
    return true;
}

static inline bool world_block_read(const world_disk *disk, uint64_t offset, uint8_t *data, size_t len)
{
    return block_read(disk, offset, data, len) == GUEST_OK;
}

static inline bool world_block_write(const world_disk *disk, uint64_t offset, const uint8_t *data, size_t len)
{
    return block_write(disk, offset, data, len) == GUEST_OK;
}

#define WORLD_HAS_BATCHES

static inline struct tender_block_request world_request(const world_disk *disk, bool write, uint64_t offset,
                                                        uint8_t *data, size_t len)
{
    return (struct tender_block_request){
        .op = write ? TENDER_BLOCK_WRITE : TENDER_BLOCK_READ,
        .handle = disk->handle,
        .offset = offset,
        .data = (uintptr_t)data,
        .len = len,
    };
}

static inline bool world_submit(struct tender_block_request *requests, size_t count)
{
    return block_submit(requests, count) == GUEST_OK;
}

#endif

/* ---- For both builds: words of the command line, and text ---- */

static inline void say(const char *text)
{
    size_t len = 0;
    while (text[len])
        len++;
    world_print(text, len);
}

static inline void say_number(uint64_t value)
{
    char text[21];
    size_t at = sizeof text - 1;
    text[at] = 0;
    do {
        text[--at] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    say(text + at);
}

/* If the text at *at begins with `word` as a whole word, moves *at past it and the space after it. */
static inline bool take_word(const char **at, const char *word)
{
    const char *p = *at;
    while (*word && *p == *word) {
        p++;
        word++;
    }
    if (*word || (*p && *p != ' '))
        return false;
    *at = *p ? p + 1 : p;
    return true;
}

static inline uint64_t take_number(const char **at)
{
    uint64_t value = 0;
    while (**at >= '0' && **at <= '9')
        value = value * 10 + (uint64_t)(*(*at)++ - '0');
    while (**at == ' ')
        (*at)++;
    return value;
}

#endif
