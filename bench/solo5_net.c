/*
 * The guest of `tender bench net`: what a frame costs a guest, one hypercall a frame. Written against Solo5's
 * public API alone, so that one source is an hvt and an spt unikernel; README.md says how it is built, with
 * Solo5's compiler.
 *
 *     tx SIZE COUNT      writes COUNT frames
 *     rx SIZE COUNT      reads COUNT frames that wait in the queue
 *     echo SIZE COUNT    reads and writes back each of them
 *     serve SIZE COUNT   the same, with a poll before each, as Solo5's own test_net does it
 *     pong SIZE COUNT    the same, each as it arrives: whoever sends it measures
 *
 * rx, echo and serve say "ready", compute for SETTLE_NS while the queue is filled, and then begin; one that
 * finds it empty too early says so, for then who filled it was measured. Prints "MODE SIZE COUNT
 * NANOSECONDS". Frames of other protocols are passed over.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "solo5.h"

#define FRAME_MAX  1514
#define ETHERTYPE  0x88b5 /* IEEE's local experimental one */
#define SETTLE_NS  250000000
#define FOREVER_NS 3600000000000

static uint8_t frame[FRAME_MAX] __attribute__((aligned(64)));
static solo5_handle_t net;
static uint8_t own_mac[6];

static void put(const char *text)
{
    size_t len = 0;
    while (text[len])
        len++;
    solo5_console_write(text, len);
}

static void put_number(uint64_t value)
{
    char text[21];
    size_t at = sizeof text - 1;
    text[at] = 0;
    do {
        text[--at] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    put(text + at);
}

static bool take_word(const char **at, const char *word)
{
    const char *p = *at;
    while (*word && *p == *word) {
        p++;
        word++;
    }
    if (*word || *p != ' ')
        return false;
    *at = p + 1;
    return true;
}

static uint64_t take_number(const char **at)
{
    uint64_t value = 0;
    while (**at >= '0' && **at <= '9')
        value = value * 10 + (uint64_t)(*(*at)++ - '0');
    while (**at == ' ')
        (*at)++;
    return value;
}

static bool read_one(size_t *len, bool wait)
{
    for (;;) {
        solo5_result_t result = solo5_net_read(net, frame, sizeof frame, len);
        if (result == SOLO5_R_OK && *len > 14 && frame[12] == ETHERTYPE >> 8 &&
            frame[13] == (ETHERTYPE & 255))
            return true;
        if (result != SOLO5_R_OK && !wait)
            return false;
        if (result != SOLO5_R_OK) {
            solo5_handle_set_t ready;
            solo5_yield(solo5_clock_monotonic() + FOREVER_NS, &ready);
        }
    }
}

static void write_back(size_t len)
{
    for (size_t i = 0; i < 6; i++) {
        frame[i] = frame[6 + i];
        frame[6 + i] = own_mac[i];
    }
    (void)solo5_net_write(net, frame, len);
}

static bool receive(uint64_t count, bool echo, bool poll, bool wait)
{
    size_t len;
    for (uint64_t i = 0; i < count; i++) {
        if (poll) {
            solo5_handle_set_t ready;
            solo5_yield(solo5_clock_monotonic() + FOREVER_NS, &ready);
        }
        if (!read_one(&len, wait))
            return false;
        if (echo)
            write_back(len);
    }
    return true;
}

static void transmit(uint64_t size, uint64_t count)
{
    for (size_t i = 0; i < 6; i++) {
        frame[i] = i == 0 ? 2 : 0; /* a station that is not there */
        frame[6 + i] = own_mac[i];
    }
    frame[12] = ETHERTYPE >> 8;
    frame[13] = ETHERTYPE & 255;
    for (uint64_t i = 0; i < count; i++)
        (void)solo5_net_write(net, frame, size);
}

int solo5_app_main(const struct solo5_start_info *start)
{
    const char *at = start->cmdline, *mode = at;
    struct solo5_net_info info;
    bool tx = take_word(&at, "tx"), rx = take_word(&at, "rx"), echo = take_word(&at, "echo");
    bool serve = take_word(&at, "serve"), pong = take_word(&at, "pong");
    uint64_t size = take_number(&at), count = take_number(&at);
    if (solo5_net_acquire("service0", &net, &info) != SOLO5_R_OK || size < 60 || size > FRAME_MAX || !count ||
        !(tx || rx || echo || serve || pong)) {
        put("usage: tx|rx|echo|serve|pong SIZE COUNT\n");
        return 1;
    }
    for (size_t i = 0; i < 6; i++)
        own_mac[i] = info.mac_address[i];
    put("ready\n");
    uint64_t begin = solo5_clock_monotonic();
    while ((rx || echo || serve) && solo5_clock_monotonic() < begin + SETTLE_NS)
        ;
    begin = solo5_clock_monotonic();
    if (tx)
        transmit(size, count);
    else if (!receive(count, !rx, serve, pong)) {
        put("the queue was empty too early\n");
        return 2;
    }
    uint64_t end = solo5_clock_monotonic();
    while (*mode && *mode != ' ')
        solo5_console_write(mode++, 1);
    put(" ");
    put_number(size);
    put(" ");
    put_number(count);
    put(" ");
    put_number(end - begin);
    put("\n");
    return 0;
}
