/*
 * Prints "ready", then sends every frame back unchanged, including its addresses, until a frame
 * contains "QUIT" at byte 14. At the end prints "net_rx_poll: frames N bytes N polls N". Status 0.
 *
 *     net_rx_poll [--buffer=N] [--quiet]      size of the read buffer, net_frame_bytes() by default;
 *                                             --quiet sends nothing back
 */
#include <tender/guest.h>

TENDER_MANIFEST(1, TENDER_NET("service0"));

static uint8_t frame[65536 + 18];

int main(int argc, char **argv)
{
    struct net_device net;
    if (net_open("service0", &net) != GUEST_OK) {
        panic("net_rx_poll: no network device service0");
    }
    uint64_t capacity = net_frame_bytes(&net);
    number_parse(args_value(argc, argv, "--buffer="), &capacity);
    if (capacity > sizeof(frame)) {
        panic("net_rx_poll: --buffer=%lu is over %zu", capacity, sizeof(frame));
    }
    bool quiet = args_has(argc, argv, "--quiet");
    uint64_t frames = 0, bytes = 0, polls = 0;
    printf("ready\n");
    for (;;) {
        size_t len;
        while (net_read(&net, frame, capacity, &len) == GUEST_OK) {
            frames++;
            bytes += len;
            if (len >= 18 && memcmp(frame + 14, "QUIT", 4) == 0) {
                printf("net_rx_poll: frames %lu bytes %lu polls %lu\n", frames, bytes, polls);
                return 0;
            }
            if (!quiet) {
                net_write(&net, frame, len);
            }
        }
        poll_wait(1000000000, NULL);
        polls++;
    }
}
