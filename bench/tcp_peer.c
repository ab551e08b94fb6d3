/*
 * The host's side of tcp_rounds.py: clients of tcp_guest.c, one process without threads.
 *
 *     tcp_peer http CONNECTIONS SECONDS    requests per second, one at a time on each connection
 *     tcp_peer in   CONNECTIONS SECONDS    bytes per second to the guest
 *     tcp_peer out  CONNECTIONS SECONDS    bytes per second from the guest
 *
 * It tries to connect until the guest answers, waits for an eighth of the time, and then counts. It prints
 * one number. Bytes to the guest are those that the guest has acknowledged.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS_MAX 64
#define CONNECT_LIMIT_S 8
#define NS_PER_S        1000000000u
#define ANSWER_BODY     1024

static const char request[] = "GET / HTTP/1.1\r\nHost: guest\r\n\r\n";

enum mode { HTTP, IN, OUT };

struct connection {
    int fd;
    bool in_body;
    uint64_t written, left; /* left: bytes of an answer's body that have not come yet */
    char head[512];
    size_t head_len;
};

static uint8_t bytes[65536];

static void fail(const char *what)
{
    fprintf(stderr, "tcp_peer: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static int connected(uint16_t port)
{
    const struct sockaddr_in guest = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = inet_addr("10.9.0.2")};
    const uint64_t end = now_ns() + (uint64_t)CONNECT_LIMIT_S * NS_PER_S;
    const int one = 1;
    for (;;) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0)
            fail("socket");
        if (connect(fd, (const struct sockaddr *)&guest, sizeof guest) == 0) {
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            fcntl(fd, F_SETFL, O_NONBLOCK);
            return fd;
        }
        if (now_ns() > end)
            fail("connect");
        close(fd);
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
}

static void ask(const struct connection *c)
{
    if (write(c->fd, request, sizeof request - 1) != (ssize_t)sizeof request - 1)
        fail("a request");
}

/* Reads what has come of answers, and returns how many answers are complete. */
static uint64_t take_answers(struct connection *c, const uint8_t *data, size_t len)
{
    uint64_t whole = 0;
    for (size_t i = 0; i < len; i++) {
        if (c->in_body) {
            const uint64_t skip = len - i < c->left ? len - i : c->left;
            c->left -= skip;
            i += skip - 1;
            if (!c->left) {
                c->in_body = false;
                whole++;
                ask(c);
            }
            continue;
        }
        if (c->head_len == sizeof c->head)
            errno = EPROTO, fail("an answer");
        c->head[c->head_len++] = (char)data[i];
        if (c->head_len < 4 || memcmp(c->head + c->head_len - 4, "\r\n\r\n", 4) != 0)
            continue;
        if (memcmp(c->head, "HTTP/1.1 200 ", 13) != 0)
            errno = EPROTO, fail("an answer");
        c->head_len = 0;
        c->in_body = true;
        c->left = ANSWER_BODY;
    }
    return whole;
}

static uint64_t serve(enum mode mode, struct connection *c)
{
    ssize_t done = mode == IN ? write(c->fd, bytes, sizeof bytes) : read(c->fd, bytes, sizeof bytes);
    if (done < 0 && errno == EAGAIN)
        return 0;
    if (done <= 0)
        fail("the guest's connection");
    if (mode == HTTP)
        return take_answers(c, bytes, (size_t)done);
    if (mode == IN)
        c->written += (uint64_t)done;
    return (uint64_t)done;
}

/* How many of the bytes written to the guest it has acknowledged. */
static uint64_t acknowledged(const struct connection *connections, int count)
{
    uint64_t sum = 0;
    for (int i = 0; i < count; i++) {
        int queued;
        if (ioctl(connections[i].fd, SIOCOUTQ, &queued) < 0)
            fail("SIOCOUTQ");
        sum += connections[i].written - (uint64_t)queued;
    }
    return sum;
}

int main(int argc, char **argv)
{
    static struct connection connections[CONNECTIONS_MAX];
    struct pollfd polled[CONNECTIONS_MAX];
    static const uint16_t ports[] = {[HTTP] = 80, [IN] = 5001, [OUT] = 5002};
    const int count = argc == 4 ? atoi(argv[2]) : 0;
    const double seconds = argc == 4 ? atof(argv[3]) : 0;
    if (count < 1 || count > CONNECTIONS_MAX || !(seconds > 0)) {
        fprintf(stderr, "usage: tcp_peer http|in|out CONNECTIONS SECONDS\n");
        return 2;
    }
    const enum mode mode = strcmp(argv[1], "http") == 0 ? HTTP : strcmp(argv[1], "in") == 0 ? IN : OUT;
    for (int i = 0; i < count; i++) {
        connections[i].fd = connected(ports[mode]);
        polled[i] = (struct pollfd){.fd = connections[i].fd, .events = mode == IN ? POLLOUT : POLLIN};
        if (mode == HTTP)
            ask(&connections[i]);
    }
    uint64_t begin = now_ns() + (uint64_t)(seconds * NS_PER_S / 8), end = 0, sum = 0, before = 0, now;
    for (;;) {
        if (poll(polled, (nfds_t)count, 2000) <= 0)
            errno = ETIMEDOUT, fail("poll");
        for (int i = 0; i < count; i++)
            if (polled[i].revents)
                sum += serve(mode, &connections[i]);
        now = now_ns();
        if (!end && now >= begin) {
            begin = now;
            end = now + (uint64_t)(seconds * NS_PER_S);
            sum = 0;
            before = mode == IN ? acknowledged(connections, count) : 0;
        }
        if (end && now >= end)
            break;
    }
    if (mode == IN)
        sum = acknowledged(connections, count) - before;
    printf("%.0f\n", (double)sum * NS_PER_S / (double)(now - begin));
    return 0;
}
