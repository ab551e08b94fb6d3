/*
 * The guest of `python bench net`: the cost of a frame for a guest. As guest_world.h tells, it is built for
 * Tender by its SDK, and for Solo5's hvt and spt by Solo5's compiler (build_solo5_guests).
 *
 *     tx SIZE COUNT [TRANSPORT]      writes COUNT frames
 *     rx SIZE COUNT [TRANSPORT]      reads COUNT frames that wait in the queue
 *     echo SIZE COUNT [TRANSPORT]    reads each frame and writes it back
 *     serve SIZE COUNT [TRANSPORT]   the same, with a poll before each, like Solo5's own test_net
 *     pong SIZE COUNT [TRANSPORT]    the same, each as it arrives; the sender measures
 *
 * A transport is a way to move frames in and out: a row of `transports`. The default is "call", one hypercall
 * per frame.
 *
 * rx, echo and serve print "ready", compute for WARM_UP_NS while the queue is filled, and then begin. If the
 * guest finds the queue empty too early, it reports that, because the filling was measured then. tx computes
 * for WARM_UP_TX_NS, until the process that reads "ready" sleeps again. The guest prints
 * "MODE SIZE COUNT NANOSECONDS". It ignores frames of other protocols.
 */
#include "guest_world.h"

WORLD_MANIFEST(1, TENDER_NET("service0"));
WORLD_ONE_BY_ONE;

#define FRAME_MAX     1514
#define ETHERTYPE     0x88b5 /* IEEE's number for local experiments */
#define WARM_UP_NS    250000000
#define WARM_UP_TX_NS 20000000

static uint8_t frame[FRAME_MAX] __attribute__((aligned(64)));
static world_net net;
static uint8_t own_mac[6];

static bool call_write(size_t len)
{
    return world_net_write(&net, frame, len);
}

static bool call_read(size_t *len)
{
    return world_net_read(&net, frame, sizeof frame, len);
}

static void call_flush(void) {}

/*
 * write: accepts the frame in `frame`, and may send it later, with others. read: false if no frame waits.
 * flush: passes all accepted frames to the host.
 */
static const struct transport {
    const char *name;
    bool (*write)(size_t len);
    bool (*read)(size_t *len);
    void (*flush)(void);
} transports[] = {
    {"call", call_write, call_read, call_flush},
};

static const struct transport *by = &transports[0];

static bool read_one(size_t *len, bool wait)
{
    for (;;) {
        bool read = by->read(len);
        if (read && *len > 14 && frame[12] == ETHERTYPE >> 8 && frame[13] == (ETHERTYPE & 255))
            return true;
        if (!read && !wait)
            return false;
        if (!read)
            world_wait();
    }
}

static void write_back(size_t len)
{
    for (size_t i = 0; i < 6; i++) {
        frame[i] = frame[6 + i];
        frame[6 + i] = own_mac[i];
    }
    (void)by->write(len);
}

static bool receive(uint64_t count, bool echo, bool poll, bool wait)
{
    size_t len;
    for (uint64_t i = 0; i < count; i++) {
        if (poll)
            world_wait();
        if (!read_one(&len, wait))
            return false;
        if (echo)
            write_back(len);
        if (wait)
            by->flush();
    }
    by->flush();
    return true;
}

static void transmit(uint64_t size, uint64_t count)
{
    for (size_t i = 0; i < 6; i++) {
        frame[i] = i == 0 ? 2 : 0; /* the address of a station that does not exist */
        frame[6 + i] = own_mac[i];
    }
    frame[12] = ETHERTYPE >> 8;
    frame[13] = ETHERTYPE & 255;
    for (uint64_t i = 0; i < count; i++)
        (void)by->write(size);
    by->flush();
}

static bool choose_transport(const char *at)
{
    if (!*at)
        return true;
    for (size_t i = 0; i < sizeof transports / sizeof transports[0]; i++) {
        const char *rest = at;
        if (take_word(&rest, transports[i].name) && !*rest) {
            by = &transports[i];
            return true;
        }
    }
    return false;
}

WORLD_MAIN
{
    const char *at = WORLD_CMDLINE, *mode = at;
    bool tx = take_word(&at, "tx"), rx = take_word(&at, "rx"), echo = take_word(&at, "echo");
    bool serve = take_word(&at, "serve"), pong = take_word(&at, "pong");
    uint64_t size = take_number(&at), count = take_number(&at);
    if (!world_net_open("service0", &net, own_mac) || size < 60 || size > FRAME_MAX || !count ||
        !(tx || rx || echo || serve || pong) || !choose_transport(at)) {
        say("usage: tx|rx|echo|serve|pong SIZE COUNT [TRANSPORT]\n");
        return 1;
    }
    say("ready\n");
    uint64_t begin = world_now_ns();
    while (!pong && world_now_ns() < begin + (tx ? WARM_UP_TX_NS : WARM_UP_NS))
        ;
    begin = world_now_ns();
    if (tx)
        transmit(size, count);
    else if (!receive(count, !rx, serve, pong)) {
        say("the queue was empty too early\n");
        return 2;
    }
    uint64_t end = world_now_ns();
    while (*mode && *mode != ' ')
        world_print(mode++, 1);
    say(" ");
    say_number(size);
    say(" ");
    say_number(count);
    say(" ");
    say_number(end - begin);
    say("\n");
    return 0;
}
