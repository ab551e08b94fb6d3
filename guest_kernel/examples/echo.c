/*
 * A network host in one file. It answers ARP requests, pings of any size up to the MTU, and UDP
 * (echo).
 *
 *     echo.elf [--ipv4=10.0.0.2/24] [--port=N] [--pings=N]      device "service0"
 *
 * --port limits UDP to one port; without it, every port answers. --pings ends the guest with status 0
 * after N echo replies.
 *
 * A reply is built in place, in the buffer of the request: the packet path has no allocation and no
 * copy. Checksums are adjusted, not recomputed. Swapping two addresses does not change a sum, so
 * the sender's checksum still protects its data on the whole way back.
 */
#include <tender/guest.h>

TENDER_MANIFEST(1, TENDER_NET("service0"));

#define ETHERNET_BYTES 14
#define ARP_BYTES      28
#define IPV4_BYTES     20
#define ICMP_BYTES     8
#define UDP_BYTES      8

#define TYPE_IPV4     0x0800
#define TYPE_ARP      0x0806
#define PROTOCOL_ICMP 1
#define PROTOCOL_UDP  17
#define ICMP_REPLY    0
#define ICMP_REQUEST  8
#define REPLY_TTL     64

struct host {
    struct net_device net;
    uint32_t address;
    uint32_t netmask;
    uint32_t prefix_len;
    bool any_port;
    uint16_t port;
    uint64_t pings_wanted; /* 0: no limit */
    uint64_t pings;
};

/* ---- Network byte order, at any alignment ---- */

static uint16_t get16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static uint32_t get32(const uint8_t *at)
{
    return (uint32_t)get16(at) << 16 | get16(at + 2);
}

static void put16(uint8_t *at, uint16_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void put32(uint8_t *at, uint32_t value)
{
    put16(at, (uint16_t)(value >> 16));
    put16(at + 2, (uint16_t)value);
}

static void swap(uint8_t *a, uint8_t *b, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        uint8_t byte = a[i];
        a[i] = b[i];
        b[i] = byte;
    }
}

/* ---- The Internet checksum (RFC 1071), and its adjustment for one changed word (RFC 1624, eqn. 3) ---- */

static uint16_t folded(uint32_t sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)(sum + (sum >> 16));
}

/* The result is 0xffff for a header that contains its correct checksum. `len` is even. */
static uint16_t sum_of(const uint8_t *bytes, size_t len)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < len; i += 2) {
        sum += get16(bytes + i);
    }
    return folded(sum);
}

static void checksum_adjust(uint8_t *checksum, uint16_t old_word, uint16_t new_word)
{
    uint32_t sum = (uint16_t)~get16(checksum);
    sum += (uint16_t)~old_word;
    sum += new_word;
    put16(checksum, (uint16_t)~folded(sum));
}

/* ---- ARP (RFC 826) ---- */

/* Turns a request for our address into the reply. Returns the reply's length, or 0 for no reply. */
static size_t arp_answer(const struct host *host, uint8_t *frame, size_t len)
{
    static const uint8_t ethernet_ipv4_request[8] = {0, 1, 8, 0, 6, 4, 0, 1};
    uint8_t *arp = frame + ETHERNET_BYTES;
    uint8_t *sender_mac = arp + 8, *sender_ip = arp + 14, *target_mac = arp + 18, *target_ip = arp + 24;
    if (len < ETHERNET_BYTES + ARP_BYTES || memcmp(arp, ethernet_ipv4_request, 8) != 0 ||
        get32(target_ip) != host->address) {
        return 0;
    }
    put16(arp + 6, 2); /* reply */
    memcpy(target_mac, sender_mac, 6);
    memcpy(sender_mac, host->net.mac, 6);
    swap(sender_ip, target_ip, 4);
    memcpy(frame, target_mac, 6);
    memcpy(frame + 6, host->net.mac, 6);
    return ETHERNET_BYTES + ARP_BYTES;
}

/*
 * ---- ICMP (RFC 792) and UDP (RFC 768): `data` is the IP payload, changed in place; false: no reply ----
 */

static bool icmp_answer(uint8_t *data, size_t len)
{
    if (len < ICMP_BYTES || data[0] != ICMP_REQUEST || data[1] != 0) {
        return false;
    }
    data[0] = ICMP_REPLY;
    checksum_adjust(data + 2, ICMP_REQUEST << 8, ICMP_REPLY << 8);
    return true;
}

static bool udp_answer(const struct host *host, uint8_t *data, size_t len)
{
    if (len < UDP_BYTES || get16(data + 4) < UDP_BYTES || get16(data + 4) > len) {
        return false;
    }
    if ((!host->any_port && get16(data + 2) != host->port) || get16(data) == 0) {
        return false;
    }
    swap(data, data + 2, 2); /* the ports; the checksum covers both, in either order */
    return true;
}

/* ---- IPv4 (RFC 791) ---- */

/* Returns true for an address that must get no reply: it belongs to no single host, or it is our own. */
static bool source_is_wrong(const struct host *host, uint32_t source)
{
    bool multicast_or_reserved = source >> 29 == 7;
    bool local_network = (source & host->netmask) == (host->address & host->netmask);
    bool broadcast = local_network && ~host->netmask > 1 && (source | host->netmask) == 0xffffffff;
    return source == 0 || source == host->address || source >> 24 == 127 || multicast_or_reserved ||
           broadcast;
}

/* Returns the header's length if the packet is complete, valid, unfragmented and for us; otherwise 0. */
static size_t ipv4_check(const struct host *host, const uint8_t *ip, size_t capacity)
{
    if (capacity < IPV4_BYTES || ip[0] >> 4 != 4) {
        return 0;
    }
    size_t header = (size_t)(ip[0] & 15) * 4;
    size_t total = get16(ip + 2);
    if (header < IPV4_BYTES || header > total || total > capacity || sum_of(ip, header) != 0xffff) {
        return 0;
    }
    bool fragment = get16(ip + 6) & 0x3fff; /* more fragments, or an offset */
    bool for_us = get32(ip + 16) == host->address && !source_is_wrong(host, get32(ip + 12));
    return for_us && !fragment ? header : 0;
}

/*
 * A reply carries no IP options, so its header starts 20 bytes before the data. Returns the start
 * of the reply's frame. If the request has options, that is later in the buffer than the request's
 * start.
 */
static uint8_t *headers_answer(const struct host *host, uint8_t *frame, size_t header, size_t total)
{
    size_t options = header - IPV4_BYTES;
    uint8_t *reply = frame + options;
    if (options) {
        memmove(reply, frame, ETHERNET_BYTES + IPV4_BYTES);
    }
    uint8_t *ip = reply + ETHERNET_BYTES;
    memcpy(reply, reply + 6, 6);
    memcpy(reply + 6, host->net.mac, 6);
    swap(ip + 12, ip + 16, 4);
    if (options) {
        ip[0] = 0x45;
        ip[8] = REPLY_TTL;
        put16(ip + 2, (uint16_t)(total - options));
        put16(ip + 10, 0);
        put16(ip + 10, (uint16_t)~sum_of(ip, IPV4_BYTES));
    } else {
        uint16_t old_word = get16(ip + 8);
        ip[8] = REPLY_TTL;
        checksum_adjust(ip + 10, old_word, get16(ip + 8));
    }
    return reply;
}

static void ipv4_answer(struct host *host, uint8_t *frame, size_t len)
{
    uint8_t *ip = frame + ETHERNET_BYTES;
    size_t header = ipv4_check(host, ip, len - ETHERNET_BYTES);
    if (!header) {
        return;
    }
    size_t total = get16(ip + 2);
    uint8_t protocol = ip[9];
    uint8_t *data = ip + header;
    bool is_ping = protocol == PROTOCOL_ICMP && icmp_answer(data, total - header);
    if (!is_ping && !(protocol == PROTOCOL_UDP && udp_answer(host, data, total - header))) {
        return;
    }
    uint8_t *reply = headers_answer(host, frame, header, total);
    net_write(&host->net, reply, ETHERNET_BYTES + IPV4_BYTES + total - header);
    if (is_ping && ++host->pings == host->pings_wanted) {
        printf("echo: %lu pings answered\n", host->pings);
        guest_exit(0);
    }
}

/* ---- The loop ---- */

static void frame_answer(struct host *host, uint8_t *frame, size_t len)
{
    static const uint8_t everyone[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    if (len < ETHERNET_BYTES || (frame[6] & 1)) {
        return;
    }
    bool for_us = memcmp(frame, host->net.mac, 6) == 0;
    uint16_t type = get16(frame + 12);
    if (type == TYPE_IPV4 && for_us) {
        ipv4_answer(host, frame, len);
    } else if (type == TYPE_ARP && (for_us || memcmp(frame, everyone, 6) == 0)) {
        size_t reply = arp_answer(host, frame, len);
        if (reply) {
            net_write(&host->net, frame, reply);
        }
    }
}

static _Noreturn void serve(struct host *host, uint8_t *frame, size_t frame_bytes)
{
    for (;;) {
        size_t len;
        while (net_read(&host->net, frame, frame_bytes, &len) == GUEST_OK) {
            frame_answer(host, frame, len);
        }
        poll_wait(UINT64_MAX, NULL);
    }
}

/* ---- Arguments ---- */

/*
 * Reads a decimal number of at most `max`. Returns the position after it, or NULL if there are no
 * digits or the number is greater than `max`.
 */
static const char *field_parse(const char *text, uint32_t max, uint32_t *value)
{
    const char *at = text;
    for (*value = 0; *at >= '0' && *at <= '9'; at++) {
        *value = *value * 10 + (uint32_t)(*at - '0');
        if (*value > max) {
            return NULL;
        }
    }
    return at == text ? NULL : at;
}

/* "A.B.C.D/N" */
static bool address_parse(const char *text, struct host *host)
{
    uint32_t field;
    host->address = 0;
    for (int i = 0; i < 4; i++) {
        text = field_parse(text, 255, &field);
        if (!text || *text++ != (i < 3 ? '.' : '/')) {
            return false;
        }
        host->address = host->address << 8 | field;
    }
    text = field_parse(text, 32, &host->prefix_len);
    host->netmask = text && host->prefix_len ? ~0U << (32 - host->prefix_len) : 0;
    return text && !*text;
}

static void host_configure(struct host *host, int argc, char **argv)
{
    const char *address = args_value(argc, argv, "--ipv4=");
    address = address ? address : "10.0.0.2/24";
    if (!address_parse(address, host)) {
        panic("echo: --ipv4=%s is not A.B.C.D/N", address);
    }
    const char *port = args_value(argc, argv, "--port=");
    uint64_t number = 0;
    if (port && (!number_parse(port, &number) || number == 0 || number > 65535)) {
        panic("echo: --port=%s is not 1 to 65535", port);
    }
    host->any_port = !port;
    host->port = (uint16_t)number;
    const char *pings = args_value(argc, argv, "--pings=");
    if (pings && (!number_parse(pings, &host->pings_wanted) || host->pings_wanted == 0)) {
        panic("echo: --pings=%s is not a number from 1", pings);
    }
}

int main(int argc, char **argv)
{
    static struct host host;
    host_configure(&host, argc, argv);
    if (net_open("service0", &host.net) != GUEST_OK) {
        panic("echo: no network device service0");
    }
    size_t frame_bytes = net_frame_bytes(&host.net);
    uint8_t *frame = guest_alloc(frame_bytes);
    if (!frame) {
        panic("echo: no memory for a frame of %zu bytes", frame_bytes);
    }
    const uint8_t *mac = host.net.mac;
    uint8_t ip[4];
    put32(ip, host.address);
    printf("echo: service0 mac %02x:%02x:%02x:%02x:%02x:%02x mtu %u ipv4 %u.%u.%u.%u/%u\n", mac[0], mac[1],
           mac[2], mac[3], mac[4], mac[5], host.net.mtu, ip[0], ip[1], ip[2], ip[3], host.prefix_len);
    serve(&host, frame, frame_bytes);
}
