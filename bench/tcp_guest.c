/*
 * The guest of tcp_rounds.py: a stock guest that uses only Solo5's public API (solo5.h), with lwIP as its
 * TCP/IP stack. build_solo5_guests builds it with Solo5's compiler and bindings, so all monitors run the same
 * file. It reads frames until there is none, passes each to the stack, and yields, as MirageOS does.
 *
 *     10.9.0.2 port 80     HTTP, kept alive: answers each request with 1024 bytes
 *              port 5001   reads all bytes and drops them
 *              port 5002   sends bytes until the peer closes
 *
 * An HTTP request ends with its empty line.
 */
#include <stdbool.h>

#include "lwip/etharp.h"
#include "lwip/init.h"
#include "lwip/tcp.h"
#include "lwip/timeouts.h"
#include "netif/ethernet.h"
#include "solo5.h"

#define FRAME_MAX  1514
#define BODY_BYTES 1024
#define HEAD       "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n"
#define NS_PER_MS  1000000u

static solo5_handle_t net;
static struct solo5_net_info net_info;
static uint8_t frame[FRAME_MAX];
static char answer[sizeof HEAD - 1 + BODY_BYTES];
static const uint8_t filling[16 * TCP_MSS];

/* ---- What lwIP needs from its platform ---- */

void *memcpy(void *restrict to, const void *restrict from, size_t len)
{
    void *end = to;
    __asm__ volatile("rep movsb" : "+D"(end), "+S"(from), "+c"(len) : : "memory");
    return to;
}

void *memmove(void *to, const void *from, size_t len)
{
    if ((uintptr_t)to - (uintptr_t)from >= len)
        return memcpy(to, from, len);
    for (size_t i = len; i--;)
        ((volatile uint8_t *)to)[i] = ((const uint8_t *)from)[i];
    return to;
}

void *memset(void *to, int byte, size_t len)
{
    void *end = to;
    __asm__ volatile("rep stosb" : "+D"(end), "+c"(len) : "a"(byte) : "memory");
    return to;
}

int memcmp(const void *a, const void *b, size_t len)
{
    const uint8_t *x = a, *y = b;
    for (size_t i = 0; i < len; i++)
        if (x[i] != y[i])
            return x[i] - y[i];
    return 0;
}

size_t strlen(const char *text)
{
    size_t len = 0;
    while (((const volatile char *)text)[len])
        len++;
    return len;
}

int strncmp(const char *a, const char *b, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (a[i] != b[i] || !a[i])
            return (uint8_t)a[i] - (uint8_t)b[i];
    return 0;
}

int atoi(const char *text)
{
    int value = 0;
    while (*text >= '0' && *text <= '9')
        value = value * 10 + (*text++ - '0');
    return value;
}

static void say(const char *text)
{
    solo5_console_write(text, strlen(text));
}

void lwip_failed(const char *message)
{
    say(message);
    say("\n");
    solo5_abort();
}

uint32_t lwip_random(void)
{
    static uint64_t state = 0x9e3779b97f4a7c15;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

uint32_t sys_now(void)
{
    return (uint32_t)(solo5_clock_monotonic() / NS_PER_MS);
}

/* ---- The interface ---- */

static err_t transmit(struct netif *netif, struct pbuf *packet)
{
    static uint8_t out[FRAME_MAX];
    (void)netif;
    const uint16_t len = pbuf_copy_partial(packet, out, sizeof out, 0);
    return solo5_net_write(net, out, len) == SOLO5_R_OK ? ERR_OK : ERR_IF;
}

static err_t set_up(struct netif *netif)
{
    netif->name[0] = 's';
    netif->name[1] = '5';
    netif->mtu = 1500;
    netif->hwaddr_len = ETH_HWADDR_LEN;
    memcpy(netif->hwaddr, net_info.mac_address, ETH_HWADDR_LEN);
    netif->flags = NETIF_FLAG_BROADCAST | NETIF_FLAG_ETHARP | NETIF_FLAG_ETHERNET | NETIF_FLAG_LINK_UP;
    netif->output = etharp_output;
    netif->linkoutput = transmit;
    return ERR_OK;
}

static void receive_all(struct netif *netif)
{
    size_t len;
    while (solo5_net_read(net, frame, sizeof frame, &len) == SOLO5_R_OK) {
        struct pbuf *packet = pbuf_alloc(PBUF_RAW, (u16_t)len, PBUF_POOL);
        if (!packet)
            continue; /* drop the frame, as with a full queue */
        pbuf_take(packet, frame, (u16_t)len);
        if (netif->input(packet, netif) != ERR_OK)
            pbuf_free(packet);
    }
}

/* ---- The services ---- */

static err_t shut(struct tcp_pcb *pcb)
{
    tcp_recv(pcb, NULL);
    tcp_sent(pcb, NULL);
    if (tcp_close(pcb) == ERR_OK)
        return ERR_OK;
    tcp_abort(pcb);
    return ERR_ABRT;
}

/* The state is the length of the prefix of "\r\n\r\n" with which the bytes so far end. */
static err_t answer_requests(void *state, struct tcp_pcb *pcb, struct pbuf *data, err_t error)
{
    static const char end[] = "\r\n\r\n";
    uintptr_t seen = (uintptr_t)state;
    (void)error;
    if (!data)
        return shut(pcb);
    for (u16_t i = 0; i < data->tot_len; i++) {
        const char byte = (char)pbuf_get_at(data, i);
        seen = byte == end[seen] ? seen + 1 : byte == '\r';
        if (seen == sizeof end - 1) {
            seen = 0;
            if (tcp_write(pcb, answer, sizeof answer, 0) != ERR_OK)
                lwip_failed("an answer does not fit");
        }
    }
    tcp_arg(pcb, (void *)seen);
    tcp_recved(pcb, data->tot_len);
    pbuf_free(data);
    tcp_output(pcb);
    return ERR_OK;
}

static err_t drop_all(void *state, struct tcp_pcb *pcb, struct pbuf *data, err_t error)
{
    (void)state;
    (void)error;
    if (!data)
        return shut(pcb);
    tcp_recved(pcb, data->tot_len);
    pbuf_free(data);
    return ERR_OK;
}

static err_t send_more(void *state, struct tcp_pcb *pcb, u16_t acked)
{
    (void)state;
    (void)acked;
    while (tcp_sndbuf(pcb) >= sizeof filling)
        if (tcp_write(pcb, filling, sizeof filling, 0) != ERR_OK)
            break;
    tcp_output(pcb);
    return ERR_OK;
}

static err_t accept_http(void *state, struct tcp_pcb *pcb, err_t error)
{
    (void)state;
    if (error != ERR_OK)
        return error;
    tcp_nagle_disable(pcb);
    tcp_arg(pcb, NULL);
    tcp_recv(pcb, answer_requests);
    return ERR_OK;
}

static err_t accept_sink(void *state, struct tcp_pcb *pcb, err_t error)
{
    (void)state;
    if (error == ERR_OK)
        tcp_recv(pcb, drop_all);
    return error;
}

static err_t accept_source(void *state, struct tcp_pcb *pcb, err_t error)
{
    (void)state;
    if (error != ERR_OK)
        return error;
    tcp_recv(pcb, drop_all);
    tcp_sent(pcb, send_more);
    return send_more(NULL, pcb, 0);
}

static void serve(u16_t port, tcp_accept_fn accept)
{
    struct tcp_pcb *pcb = tcp_new();
    if (!pcb || tcp_bind(pcb, IP_ADDR_ANY, port) != ERR_OK || !(pcb = tcp_listen(pcb)))
        lwip_failed("a port cannot be opened");
    tcp_accept(pcb, accept);
}

int solo5_app_main(const struct solo5_start_info *start)
{
    struct netif netif;
    ip4_addr_t address, mask, gateway;
    (void)start;
    if (solo5_net_acquire("service0", &net, &net_info) != SOLO5_R_OK)
        return 1;
    memcpy(answer, HEAD, sizeof HEAD - 1);
    memset(answer + sizeof HEAD - 1, 'x', BODY_BYTES);
    lwip_init();
    IP4_ADDR(&address, 10, 9, 0, 2);
    IP4_ADDR(&mask, 255, 255, 255, 0);
    IP4_ADDR(&gateway, 10, 9, 0, 1);
    netif_add(&netif, &address, &mask, &gateway, NULL, set_up, ethernet_input);
    netif_set_default(&netif);
    netif_set_up(&netif);
    serve(80, accept_http);
    serve(5001, accept_sink);
    serve(5002, accept_source);
    say("ready\n");
    for (;;) {
        solo5_handle_set_t ready;
        receive_all(&netif);
        sys_check_timeouts();
        const u32_t wait_ms = sys_timeouts_sleeptime();
        if (wait_ms)
            solo5_yield(solo5_clock_monotonic() + (uint64_t)wait_ms * NS_PER_MS, &ready);
    }
}
