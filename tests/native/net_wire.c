/*
 * The host's end of a wire under load: frames on an interface, or datagrams. Each carries its
 * number and, at its end, a product of it, as tests/guests/net_batch and net_offload make and check
 * them. Python is too slow for that.
 *
 *     net_wire send IFACE COUNT SIZE WINDOW
 *         sends frames of SIZE bytes, then repeats the last frame until it is killed
 *     net_wire receive IFACE
 *         receives until its standard input ends and nothing is queued any more
 *     net_wire udp-send IFACE=ADDRESS COUNT SIZE PER WINDOW
 *         sends COUNT datagrams of SIZE bytes, PER of them per call, which the host's stack may pass on as
 *         one frame; then as above
 *     net_wire udp-receive ADDRESS
 *         as above, on port 7000
 *
 * The senders print "sent N refused N dropped N": frames that the queue before the interface
 * refused, and frames that the interface's own queue dropped, before the last frame. The receivers
 * print "ready", then "received N reordered N broken N dropped N": dropped are those for which the
 * kernel had no space in this socket. WINDOW is the maximum number of frames that the interface may
 * have and its TAP's owner has not read. The interface's statistics tell how many these are: a TAP
 * takes frames off their socket immediately. With WINDOW 0 there is no maximum, so that the queue
 * overflows.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/sock_diag.h>
#include <net/if.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define FACTOR       0x9e3779b97f4a7c15u
#define LAST         UINT64_MAX
#define ETHER_TYPE   0x88b5 /* for experiments */
#define PORT         7000
#define AT_ONCE      64
#define BUFFER_BYTES 2048
#define DATAGRAMS    65000 /* bytes per call */

static void fail(const char *what)
{
    fprintf(stderr, "net_wire: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void fill(uint8_t *frame, size_t header, size_t size, uint64_t number)
{
    const uint64_t product = number * FACTOR;
    memcpy(frame + header, &number, sizeof number);
    memcpy(frame + size - sizeof product, &product, sizeof product);
}

static int packet_socket(const char *interface)
{
    int sock = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETHER_TYPE));
    struct sockaddr_ll to = {.sll_family = AF_PACKET,
                             .sll_protocol = htons(ETHER_TYPE),
                             .sll_ifindex = (int)if_nametoindex(interface)};
    if (sock < 0 || to.sll_ifindex == 0 || bind(sock, (struct sockaddr *)&to, sizeof to) < 0)
        fail(interface);
    return sock;
}

static int udp_socket(const char *address, bool receiving)
{
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    if (sock < 0 || inet_pton(AF_INET, address, &at.sin_addr) != 1)
        fail(address);
    int (*attach)(int, const struct sockaddr *, socklen_t) = receiving ? bind : connect;
    if (attach(sock, (struct sockaddr *)&at, sizeof at) < 0)
        fail(address);
    return sock;
}

/* ---- How many frames the TAP's owner has not read yet ---- */

struct statistic {
    int fd;
    uint64_t before;
};

static struct statistic taken, lost;

static uint64_t statistic_since(const struct statistic *statistic)
{
    char text[32] = "";
    if (pread(statistic->fd, text, sizeof text - 1, 0) <= 0)
        fail("statistics");
    return strtoull(text, NULL, 10) - statistic->before;
}

static struct statistic statistic_open(const char *interface, const char *name)
{
    char path[128];
    (void)snprintf(path, sizeof path, "/sys/class/net/%s/statistics/%s", interface, name);
    struct statistic found = {.fd = open(path, O_RDONLY | O_CLOEXEC)};
    found.before = statistic_since(&found);
    return found;
}

static void window_open(const char *interface)
{
    taken = statistic_open(interface, "tx_packets");
    lost = statistic_open(interface, "tx_dropped");
}

/* Waits until fewer than `window` of the `sent` frames are unread. */
static void window_wait(uint64_t sent, uint64_t window)
{
    const struct timespec pause = {.tv_nsec = 20000};
    while (window && sent > statistic_since(&taken) + statistic_since(&lost) + window)
        nanosleep(&pause, NULL);
}

/* ---- Sending: returns how many frames were refused ---- */

static uint64_t send_all(int sock, uint64_t count, size_t size, uint64_t window)
{
    static uint8_t frames[AT_ONCE][BUFFER_BYTES];
    struct iovec pieces[AT_ONCE];
    struct mmsghdr messages[AT_ONCE] = {0};
    uint64_t refused = 0;
    for (size_t i = 0; i < AT_ONCE; i++) {
        frames[i][12] = ETHER_TYPE >> 8;
        frames[i][13] = ETHER_TYPE & 0xff;
        pieces[i] = (struct iovec){frames[i], size};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &pieces[i], .msg_iovlen = 1};
    }
    for (uint64_t sent = 0; sent < count;) {
        unsigned n = count - sent < AT_ONCE ? (unsigned)(count - sent) : AT_ONCE;
        for (unsigned i = 0; i < n; i++)
            fill(frames[i], ETH_HLEN, size, sent + i);
        window_wait(sent, window);
        for (unsigned done = 0; done < n;) {
            int some = sendmmsg(sock, messages + done, n - done, 0);
            if (some > 0)
                done += (unsigned)some;
            else if (errno == ENOBUFS || errno == ENETDOWN)
                done++, refused++;
            else if (errno != EINTR)
                fail("sendmmsg");
        }
        sent += n;
    }
    return refused;
}

static uint64_t send_datagrams(int sock, uint64_t count, size_t size, size_t at_once, uint64_t window)
{
    static uint8_t data[DATAGRAMS];
    int segment = (int)size;
    uint64_t refused = 0, calls = 0;
    if (size * at_once > sizeof data || setsockopt(sock, SOL_UDP, UDP_SEGMENT, &segment, sizeof segment) < 0)
        fail("UDP_SEGMENT");
    for (uint64_t sent = 0; sent < count; calls++) {
        size_t n = count - sent < at_once ? (size_t)(count - sent) : at_once;
        for (size_t i = 0; i < n; i++)
            fill(data + i * size, 0, size, sent + i);
        window_wait(calls, window);
        if (send(sock, data, n * size, 0) < 0) {
            if (errno != ENOBUFS)
                fail("send");
            refused += n;
        }
        sent += n;
    }
    return refused;
}

/* Sends the last frame again and again, because it may be lost, too. The process that started us
 * ends us. */
static void send_last(int sock, size_t header, size_t size)
{
    static uint8_t frame[BUFFER_BYTES];
    frame[12] = ETHER_TYPE >> 8;
    frame[13] = ETHER_TYPE & 0xff;
    fill(frame, header, size, LAST);
    for (;;) {
        (void)!send(sock, frame, size, 0);
        poll(NULL, 0, 10);
    }
}

/* Returns how many frames the kernel had no space for. */
static uint64_t dropped(int sock, bool packets)
{
    if (packets) {
        struct tpacket_stats found;
        socklen_t len = sizeof found;
        if (getsockopt(sock, SOL_PACKET, PACKET_STATISTICS, &found, &len) < 0)
            fail("PACKET_STATISTICS");
        return found.tp_drops;
    }
    uint32_t found[SK_MEMINFO_VARS] = {0};
    socklen_t len = sizeof found;
    if (getsockopt(sock, SOL_SOCKET, SO_MEMINFO, found, &len) < 0)
        fail("SO_MEMINFO");
    return found[SK_MEMINFO_DROPS];
}

static void receive(int sock, size_t header)
{
    static uint8_t frames[AT_ONCE][BUFFER_BYTES];
    struct iovec pieces[AT_ONCE];
    struct mmsghdr messages[AT_ONCE] = {0};
    uint64_t received = 0, expected = 0, reordered = 0, broken = 0;
    int queued_bytes = 64 << 20;
    if (setsockopt(sock, SOL_SOCKET, SO_RCVBUFFORCE, &queued_bytes, sizeof queued_bytes) < 0)
        fail("SO_RCVBUFFORCE");
    for (size_t i = 0; i < AT_ONCE; i++) {
        pieces[i] = (struct iovec){frames[i], BUFFER_BYTES};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &pieces[i], .msg_iovlen = 1};
    }
    puts("ready");
    for (bool over = false;;) {
        int n = recvmmsg(sock, messages, AT_ONCE, MSG_DONTWAIT, NULL);
        if (n < 0 && errno == EAGAIN) {
            struct pollfd ready[2] = {{.fd = sock, .events = POLLIN}, {.fd = STDIN_FILENO, .events = POLLIN}};
            if (over)
                break;
            poll(ready, 2, -1);
            over = ready[1].revents != 0; /* what was sent before that end is queued by now */
            continue;
        }
        if (n < 0 && errno != EINTR && errno != ENETDOWN)
            fail("recvmmsg");
        for (int i = 0; i < n; i++) {
            uint64_t number, product;
            if (messages[i].msg_len < header + sizeof number + sizeof product) {
                broken++;
                continue;
            }
            memcpy(&number, frames[i] + header, sizeof number);
            memcpy(&product, frames[i] + messages[i].msg_len - sizeof product, sizeof product);
            received++;
            broken += product != number * FACTOR;
            reordered += number < expected;
            expected = number + 1;
        }
    }
    printf("received %lu reordered %lu broken %lu dropped %lu\n", received, reordered, broken,
           dropped(sock, header != 0));
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    const char *what = argc > 2 ? argv[1] : "";
    uint64_t number[4] = {0};
    for (int i = 3; i < argc && i < 7; i++)
        number[i - 3] = strtoull(argv[i], NULL, 10);
    const uint64_t count = number[0], size = number[1];
    if (argc == 6 && size >= ETH_HLEN + 16 && size <= BUFFER_BYTES && strcmp(what, "send") == 0) {
        int sock = packet_socket(argv[2]);
        window_open(argv[2]);
        uint64_t refused = send_all(sock, count, size, number[2]);
        printf("sent %lu refused %lu dropped %lu\n", count, refused, statistic_since(&lost));
        send_last(sock, ETH_HLEN, size);
    } else if (argc == 7 && size >= 16 && size <= BUFFER_BYTES && strcmp(what, "udp-send") == 0) {
        char *address = strchrnul(argv[2], '=');
        if (*address)
            *address++ = '\0';
        int sock = udp_socket(address, false);
        window_open(argv[2]);
        uint64_t refused = send_datagrams(sock, count, size, number[2], number[3]);
        printf("sent %lu refused %lu dropped %lu\n", count, refused, statistic_since(&lost));
        send_last(sock, 0, size);
    } else if (argc == 3 && strcmp(what, "receive") == 0) {
        receive(packet_socket(argv[2]), ETH_HLEN);
    } else if (argc == 3 && strcmp(what, "udp-receive") == 0) {
        receive(udp_socket(argv[2], true), 0);
    } else {
        fprintf(stderr, "usage: net_wire send|receive|udp-send|udp-receive ...\n");
        return 2;
    }
    return 0;
}
