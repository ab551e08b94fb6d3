/*
 * Sends broadcast frames of Ethernet type 0x88b5 (for experiments), filled with their own sequence
 * number, and prints one line per size: "net_tx: size N sent N ok N refused N". Status 0 whatever
 * the results.
 *
 *     net_tx [--count=1] [--size=N]      without --size: 0, 1, 13, 14, 60, mtu+13, mtu+14, mtu+15, 9000,
 *                                        65535
 *
 * A result of AGAIN violates the ABI: "net_tx: FAILED ..." and status 1.
 */
#include <tender/guest.h>

TENDER_MANIFEST(1, TENDER_NET("service0"));

static uint8_t frame[65536 + 14];

static void frame_fill(const struct net_device *net, uint64_t sequence)
{
    memset(frame, (int)(sequence & 0xff), sizeof(frame));
    memset(frame, 0xff, 6);
    memcpy(frame + 6, net->mac, 6);
    frame[12] = 0x88;
    frame[13] = 0xb5;
}

static void send(const struct net_device *net, size_t size, uint64_t count)
{
    uint64_t ok = 0, refused = 0;
    for (uint64_t i = 0; i < count; i++) {
        frame_fill(net, i);
        enum guest_result result = net_write(net, frame, size);
        if (result == GUEST_AGAIN) {
            printf("net_tx: FAILED size %zu: net_write answered AGAIN\n", size);
            guest_exit(1);
        }
        ok += result == GUEST_OK;
        refused += result != GUEST_OK;
    }
    printf("net_tx: size %zu sent %lu ok %lu refused %lu\n", size, count, ok, refused);
}

int main(int argc, char **argv)
{
    struct net_device net;
    uint64_t count = 1, size;
    if (net_open("service0", &net) != GUEST_OK) {
        panic("net_tx: no network device service0");
    }
    number_parse(args_value(argc, argv, "--count="), &count);
    if (number_parse(args_value(argc, argv, "--size="), &size)) {
        if (size > sizeof(frame)) {
            panic("net_tx: --size=%lu is over %zu", size, sizeof(frame));
        }
        send(&net, size, count);
        return 0;
    }
    size_t full = (size_t)net.mtu + 14;
    const size_t sizes[] = {0, 1, 13, 14, 60, full - 1, full, full + 1, 9000, 65535};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        send(&net, sizes[i], count);
    }
    return 0;
}
