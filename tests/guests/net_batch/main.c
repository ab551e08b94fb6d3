/*
 * Moves frames in batches, or by the calls that use batches internally. Each frame carries its
 * number after the Ethernet header and a product of that number at its end, so that a loss, a wrong
 * order or a mixed frame is noticed.
 *
 *     net_batch tx|rx|echo [--by=submit|calls] [--count=N] [--size=64]
 *
 * tx sends N frames. rx and echo receive frames up to the one with number 2^64 - 1. echo sends each
 * of the others back. All end with "net_batch: frames N reordered N lost N broken N" and status 0.
 */
#include <tender/guest.h>

TENDER_MANIFEST(1, TENDER_NET("service0"));

#define HEADER       14u
#define FACTOR       0x9e3779b97f4a7c15u
#define LAST         UINT64_MAX
#define BATCH        64u
#define BUFFER_BYTES 2048u

static struct net_device net;
static uint8_t buffers[2][BATCH][BUFFER_BYTES];
static uint64_t frames, expected, reordered, lost, broken;
static bool over;

static void frame_fill(uint8_t *frame, size_t size, uint64_t number)
{
    const uint64_t product = number * FACTOR;
    memset(frame, 0, size);
    memset(frame, 0xff, 6);
    memcpy(frame + 6, net.mac, 6);
    frame[12] = 0x88;
    frame[13] = 0xb5;
    memcpy(frame + HEADER, &number, 8);
    memcpy(frame + size - 8, &product, 8);
}

/* Returns false if the frame does not belong to this test. */
static bool frame_check(const uint8_t *frame, size_t len)
{
    uint64_t number, product;
    if (len < HEADER + 16 || frame[12] != 0x88 || frame[13] != 0xb5) {
        return false;
    }
    memcpy(&number, frame + HEADER, 8);
    memcpy(&product, frame + len - 8, 8);
    if (number == LAST) {
        over = true;
        return false;
    }
    frames++;
    broken += product != number * FACTOR;
    reordered += number < expected;
    lost += number > expected ? number - expected : 0;
    expected = number + 1;
    return true;
}

static void send_all(bool by_calls, size_t size, uint64_t count)
{
    struct tender_net_frame batch[BATCH];
    size_t received;
    while (frames < count) {
        uint32_t n = 0;
        for (; n < BATCH && frames < count; n++) {
            frame_fill(buffers[0][n], size, frames++);
            batch[n] =
                (struct tender_net_frame){.data = (gpa_t)(uintptr_t)buffers[0][n], .len = (uint32_t)size};
            if (by_calls) {
                broken += net_write(&net, buffers[0][n], size) != GUEST_OK;
            }
        }
        if (by_calls) {
            continue;
        }
        broken += net_submit(&net, batch, n, 0, 0, &received) != GUEST_OK;
        for (uint32_t i = 0; i < n; i++) {
            broken += batch[i].ret != GUEST_OK;
        }
    }
}

static void take_by_calls(bool echo)
{
    size_t len;
    while (!over) {
        while (!over && net_read(&net, buffers[0][0], BUFFER_BYTES, &len) == GUEST_OK) {
            if (frame_check(buffers[0][0], len) && echo) {
                net_write(&net, buffers[0][0], len);
            }
        }
        if (!over) {
            poll_wait(UINT64_MAX, NULL);
        }
    }
}

static void take_by_submit(bool echo)
{
    struct tender_net_frame batch[2 * BATCH];
    uint32_t out = 0;
    for (unsigned turn = 0; !over || out; turn ^= 1) { /* one half is sent while the other is filled */
        size_t received;
        for (uint32_t i = 0; i < BATCH; i++) {
            batch[out + i] =
                (struct tender_net_frame){.data = (gpa_t)(uintptr_t)buffers[turn][i], .len = BUFFER_BYTES};
        }
        if (net_submit(&net, batch, out, over ? 0 : BATCH, over ? 0 : UINT64_MAX, &received) != GUEST_OK) {
            panic("net_batch: refused");
        }
        const struct tender_net_frame *in = batch + out;
        uint32_t next = 0;
        for (uint32_t i = 0; i < received; i++) {
            if (frame_check((const uint8_t *)in[i].data, in[i].len) && echo) {
                batch[next++] = (struct tender_net_frame){.data = in[i].data, .len = in[i].len};
            }
        }
        out = next;
    }
}

int main(int argc, char **argv)
{
    uint64_t count = 1000, size = 64;
    const char *by = args_value(argc, argv, "--by=");
    const bool by_calls = by && strcmp(by, "calls") == 0;
    number_parse(args_value(argc, argv, "--count="), &count);
    number_parse(args_value(argc, argv, "--size="), &size);
    if (net_open("service0", &net) != GUEST_OK || size < HEADER + 16 || size > BUFFER_BYTES) {
        panic("net_batch: no network device service0, or a size out of range");
    }
    printf("net_batch: ready\n");
    if (args_has(argc, argv, "tx")) {
        send_all(by_calls, size, count);
    } else if (by_calls) {
        take_by_calls(args_has(argc, argv, "echo"));
    } else {
        take_by_submit(args_has(argc, argv, "echo"));
    }
    printf("net_batch: frames %lu reordered %lu lost %lu broken %lu\n", frames, reordered, lost, broken);
    return 0;
}
