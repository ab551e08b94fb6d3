/*
 * Two network devices, service0 (handle 1) and service1 (handle 2). Prints one line per device:
 *
 *     service0 handle 1 mac 02:... mtu 1500
 *
 * then polls once and prints "ready N set 0xS", reads until AGAIN on each device and prints
 * "service0 frames N".
 *
 *     two_nets [--wait-ms=0]      the time of the poll; status 0
 */
#include <tender/guest.h>

TENDER_MANIFEST(2, TENDER_NET("service0"), TENDER_NET("service1"));

static void print_device(const char *name, const struct net_device *net)
{
    printf("%s handle %lu mac %02x:%02x:%02x:%02x:%02x:%02x mtu %u\n", name, net->handle, net->mac[0],
           net->mac[1], net->mac[2], net->mac[3], net->mac[4], net->mac[5], net->mtu);
}

static unsigned drain(const struct net_device *net)
{
    static uint8_t frame[65536 + 18];
    unsigned frames = 0;
    size_t len;
    while (frames < 10000 && net_read(net, frame, net_frame_bytes(net), &len) == GUEST_OK) {
        frames++;
    }
    return frames;
}

int main(int argc, char **argv)
{
    static const char *const names[2] = {"service0", "service1"};
    struct net_device nets[2];
    uint64_t wait_ms = 0, ready_set;
    number_parse(args_value(argc, argv, "--wait-ms="), &wait_ms);
    for (unsigned i = 0; i < 2; i++) {
        if (net_open(names[i], &nets[i]) != GUEST_OK) {
            panic("two_nets: no network device %s", names[i]);
        }
        print_device(names[i], &nets[i]);
    }
    int ready = poll_wait(wait_ms * 1000000, &ready_set);
    printf("ready %d set 0x%lx\n", ready, ready_set);
    for (unsigned i = 0; i < 2; i++) {
        printf("%s frames %u\n", names[i], drain(&nets[i]));
    }
    return 0;
}
