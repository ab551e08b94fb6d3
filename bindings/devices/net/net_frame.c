/*
 * Transfers one frame directly between guest memory and a descriptor. The same rules hold for
 * hypercalls, batches and the ring.
 *
 * A frame that cannot be sent now (queue full, interface down, too short for the kernel) is dropped
 * and counted, as a wire may do, and the guest goes on. A received frame that is longer than its
 * buffer is dropped and counted too, because a part of a frame is of no use. A device whose other
 * end has closed is always empty and leaves the poll set, so that a guest does not spin on it. The
 * same holds for a TAP without an interface, until it has one again (net_detached.c). A read of 0
 * bytes does not by itself mean that the other end has closed: it may be an empty datagram, which
 * is dropped and counted.
 *
 * A read() that fills its buffer does not show whether the frame was longer. So the read asks for
 * one more byte. If no other thread can read guest memory at that time, this byte is the one after
 * the guest's buffer: only a frame that is dropped overwrites it, and then its value is restored.
 * Otherwise, when the ring's worker was woken before, the byte lies in the host's own memory.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "entered.h"
#include "hypercall.h"
#include "net_frame.h"

#define FRAME_MAX 65553u /* 64 KiB - 1 of MTU, the Ethernet header and a VLAN tag */
#define DROPS_MAX 64     /* frames that one read drops before it reports that there is none */

/*
 * Checks a header before it goes to the host's tun driver, which checks it too. A header that is
 * invalid in itself, or that asks for an offload which the device does not have, is refused here.
 * Every device takes a frame whose header asks for nothing.
 */
static bool header_is_valid(uint32_t offload, const struct net_header *header, uint64_t len)
{
    static const uint32_t needed[] = {
        [TENDER_GSO_TCP4] = TENDER_OFFLOAD_TSO4,
        [TENDER_GSO_TCP6] = TENDER_OFFLOAD_TSO6,
        [TENDER_GSO_UDP] = TENDER_OFFLOAD_USO,
    };
    const uint8_t gso = header->gso_type & (uint8_t)~TENDER_GSO_ECN;
    const bool sums = header->flags & TENDER_NET_NEEDS_CSUM;
    if (header->flags & ~(TENDER_NET_NEEDS_CSUM | TENDER_NET_DATA_VALID) || header->hdr_len > len)
        return false;
    if (sums && (!(offload & TENDER_OFFLOAD_CSUM) ||
                 (uint64_t)header->csum_start + header->csum_offset + sizeof(uint16_t) > len))
        return false;
    if (header->gso_type == TENDER_GSO_NONE)
        return true;
    return sums && header->gso_size && gso < sizeof needed / sizeof *needed && offload & needed[gso] &&
           (gso != TENDER_GSO_UDP || header->gso_type == gso);
}

/*
 * Not inlined, like the other functions that few devices need, so that the path of a plain frame
 * stays short.
 */
static __attribute__((noinline)) int64_t send_headed(const struct vm_device *device, const void *data,
                                                     uint64_t len, const struct net_header *asked)
{
    struct net_header header = {0};
    if (asked)
        header = *asked;
    header.flags &= TENDER_NET_NEEDS_CSUM;
    const struct iovec pieces[] = {{&header, sizeof header}, {(void *)(uintptr_t)data, len}};
    const ssize_t sent = writev(device->fd, pieces, 2);
    return sent < 0 ? -errno : sent - (ssize_t)sizeof header;
}

static __attribute__((noinline)) int64_t send_to_peer(const struct vm_device *device, const void *data,
                                                      uint64_t len)
{
    const ssize_t sent = send(device->fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);
    return sent < 0 ? -errno : sent;
}

/* Returns the bytes sent or -errno. If it is not the whole frame, the frame is lost. */
static int64_t send_frame(const struct vm_device *device, const void *data, uint64_t len,
                          const struct net_header *header)
{
    if (net_of(device)->has_header)
        return send_headed(device, data, len, header);
    if (net_of(device)->is_socket)
        return send_to_peer(device, data, len);
    return write_quietly(device->fd, data, len);
}

enum device_answer net_send(struct vm *vm, struct vm_counters *counters, struct vm_device *device,
                            const void *data, uint64_t len, const struct net_header *header)
{
    if (len > FRAME_MAX || (header && !header_is_valid(net_of(device)->offload, header, len)))
        return DEVICE_INVALID;
    const int64_t sent = send_frame(device, data, len, header);
    if (sent == (int64_t)len) {
        counters->net_tx_packets++;
        counters->net_tx_bytes += len;
    } else {
        counters->net_tx_drops++;
        if (sent == -EBADFD)
            net_note_detached(vm, device, counters);
    }
    return DEVICE_DONE;
}

enum device_answer net_send_from(struct vm *vm, struct vm_counters *counters, uint64_t handle, gpa_t gpa,
                                 uint64_t len, const struct net_header *header)
{
    struct vm_device *device = net_device(vm, handle);
    if (!device)
        return DEVICE_INVALID;
    const void *data = guest_bytes_at(&vm->memory, gpa, len);
    return data ? net_send(vm, counters, device, data, len, header) : DEVICE_BAD_RANGE;
}

bool net_send_joined(const struct vm_device *device, struct vm_counters *counters,
                     const struct tcp_joined *joined)
{
    const uint64_t whole = joined->head_len + joined->payload_len;
    if (writev(device->fd, joined->pieces, (int)(2 + joined->count)) !=
        (ssize_t)(sizeof joined->header + whole))
        return false;
    counters->net_tx_packets += joined->count;
    counters->net_tx_bytes += whole + (uint64_t)(joined->count - 1) * joined->head_len;
    return true;
}

/*
 * Completes the checksum (RFC 1071), as the kernel does for a device without offload. Returns false
 * if its place lies outside of the frame.
 */
static bool complete_checksum(const struct vm *vm, uint8_t *data, uint64_t len,
                              const struct net_header *header)
{
    const uint64_t at = (uint64_t)header->csum_start + header->csum_offset;
    if (at + sizeof(uint16_t) > len)
        return false;
    const uint16_t folded = (uint16_t)~internet_sum(data + header->csum_start, len - header->csum_start);
    const uint16_t sum = folded ? folded : 0xffff; /* 0 would mean that there is no checksum */
    guest_put(&vm->memory, data + at, &sum, sizeof sum, ENTERED_FRAME);
    return true;
}

/*
 * Whether the byte after the buffer may be overwritten for a moment: it is memory that the guest
 * may write, and nothing can read it meanwhile. The guest's only vCPU has exited, and no worker
 * serves or can begin to.
 */
static bool may_borrow_byte_after(const struct vm *vm, gpa_t gpa, uint64_t capacity)
{
    const struct net_ring *ring = &net_vm(vm)->ring;
    return (!ring->woken || ring->vcpu_serves) && guest_buffer_at(&vm->memory, gpa + capacity, 1);
}

/* Reports to entered() the part of the buffer at `data` that a read with the result `got` has written. */
static inline void report_read(const struct vm *vm, const uint8_t *data, uint64_t capacity, ssize_t got)
{
    entered(&vm->memory, data,
            got < 0                    ? 0
            : (uint64_t)got < capacity ? (uint64_t)got
                                       : capacity,
            ENTERED_FRAME);
}

/* readv() costs 280 instructions more than read(), which takes 1750 for 1514 bytes on a TAP (Linux 6.1). */
static __attribute__((noinline)) ssize_t read_with_spare(const struct vm *vm, int fd, uint8_t *data,
                                                         uint64_t capacity)
{
    uint8_t spare;
    const struct iovec pieces[] = {{data, capacity}, {&spare, sizeof spare}};
    ssize_t got = readv(fd, pieces, 2);
    if (got < 0 && errno == ENOSYS) {
        /*
         * An inherited filter refuses readv(). Then it is unknown whether a frame that fills the
         * buffer was longer.
         */
        got = read(fd, data, capacity);
        got += got == (ssize_t)capacity;
    }
    report_read(vm, data, capacity, got);
    return got;
}

/*
 * Reads one frame and returns read()'s result. A result above `capacity` means that the frame was
 * longer, and is lost. `may_borrow`: the byte after the buffer may be overwritten for a moment.
 */
static ssize_t read_plain(const struct vm *vm, int fd, uint8_t *data, uint64_t capacity, bool may_borrow)
{
    if (!may_borrow)
        return read_with_spare(vm, fd, data, capacity);
    const uint8_t behind = data[capacity];
    const ssize_t got = read(fd, data, capacity + 1);
    if (got > (ssize_t)capacity)
        data[capacity] = behind;
    report_read(vm, data, capacity, got);
    return got;
}

/* Takes the next segment and returns its length. Sets `dropped` if it is longer than its buffer. */
static ssize_t take_segment(const struct vm *vm, struct tcp_cut *large, uint8_t *data, uint64_t capacity,
                            bool *dropped)
{
    const uint32_t len = tcp_cut_next(large, data, capacity);
    *dropped = len > capacity;
    entered(&vm->memory, data, *dropped ? 0 : len, ENTERED_FRAME);
    return (ssize_t)len;
}

/*
 * Reads one frame that has a header before it. Returns its length, or readv()'s result. Sets
 * `dropped` if the frame cannot be passed to the guest, and is lost.
 */
static ssize_t read_one_headed(const struct vm *vm, const struct vm_device *device, struct tcp_cut *large,
                               uint8_t *data, uint64_t capacity, struct net_header *header, bool *dropped)
{
    struct net_header own;
    uint8_t spare;
    struct iovec pieces[] = {{&own, sizeof own}, {data, capacity}, {&spare, sizeof spare}};
    if (large)
        pieces[2] = (struct iovec){large->frame + capacity, TCP_LARGE_MAX + 1 - capacity};
    ssize_t got = readv(device->fd, pieces, 3);
    if (got <= 0)
        return got;
    *dropped = got <= (ssize_t)sizeof own; /* a header without a frame */
    if (*dropped)
        return 0;
    const uint64_t len = (uint64_t)got - sizeof own, here = len < capacity ? len : capacity;
    entered(&vm->memory, data, here, ENTERED_FRAME);
    if (large)
        entered(&vm->memory, large->frame + capacity, len - here, ENTERED_FRAME);
    if (large && own.gso_type) {
        guest_put(&vm->memory, large->frame, data, here, ENTERED_FRAME);
        *dropped = !tcp_cut_begin(large, len, &own);
        return *dropped ? 0 : take_segment(vm, large, data, capacity, dropped);
    }
    *dropped = len > capacity;
    if (header)
        *header = own;
    else if (!*dropped)
        *dropped =
            own.gso_type || (own.flags & TENDER_NET_NEEDS_CSUM && !complete_checksum(vm, data, len, &own));
    return (ssize_t)len;
}

/*
 * Takes the first frame that can be passed to the guest, and returns as read() does. After
 * DROPS_MAX frames that cannot, it fails with EAGAIN.
 */
static __attribute__((noinline)) ssize_t read_headed(const struct vm *vm, const struct vm_device *device,
                                                     struct tcp_cut *large, void *data, uint64_t capacity,
                                                     struct net_header *header, struct vm_counters *counters)
{
    for (unsigned drops = 0; drops < DROPS_MAX; drops++) {
        bool dropped = false;
        ssize_t got = large && large->at != large->end
                          ? take_segment(vm, large, data, capacity, &dropped)
                          : read_one_headed(vm, device, large, data, capacity, header, &dropped);
        if (!dropped)
            return got;
        counters->net_rx_drops++;
    }
    errno = EAGAIN;
    return -1;
}

/* Takes the next segment of a large frame, or the next frame, and returns as read() does. */
static __attribute__((noinline)) ssize_t read_segment(struct vm *vm, const struct vm_device *device,
                                                      void *data, uint64_t capacity,
                                                      struct vm_counters *counters)
{
    struct net_vm *const nets = net_vm(vm);
    struct tcp_cut *const cut = &nets->cut;
    if (atomic_exchange_explicit(&nets->cut_busy, true, memory_order_acquire)) {
        errno = EAGAIN;
        return -1;
    }
    const ssize_t got = read_headed(vm, device, cut, data, capacity, NULL, counters);
    atomic_store_explicit(&nets->cut_left, cut->at != cut->end, memory_order_relaxed);
    atomic_store_explicit(&nets->cut_busy, false, memory_order_release);
    return got;
}

static bool has_hung_up(const struct vm *vm, const struct vm_device *device)
{
    static const struct timespec at_once = {0, 0};
    struct pollfd end = {device->fd, POLLRDHUP, 0};
    return ppoll(&end, 1, &at_once, &vm->poll_mask) == 1 && end.revents & (POLLRDHUP | POLLHUP);
}

/* Whether a read returned no usable frame: an empty datagram, or a frame that is longer than its buffer. */
static bool is_unusable(const struct vm_device *device, ssize_t got, uint64_t capacity)
{
    return got > (ssize_t)capacity || (got == 0 && net_of(device)->is_socket);
}

/*
 * Reads the next usable frame after a read with the result `got`, which was not usable. Returns as
 * read() does; 0 means that the peer has hung up and nothing is left. After a hang-up nothing new
 * arrives, so the reads below take what was queued. After DROPS_MAX unusable frames it fails with
 * EAGAIN, and the guest asks again.
 */
static __attribute__((noinline)) ssize_t read_after_unusable(const struct vm *vm,
                                                             const struct vm_device *device, uint8_t *data,
                                                             uint64_t capacity, bool may_borrow, ssize_t got,
                                                             struct vm_counters *counters)
{
    bool ended = false;
    for (unsigned drops = 0; drops < DROPS_MAX && is_unusable(device, got, capacity); drops++) {
        ended = ended || (got == 0 && has_hung_up(vm, device));
        counters->net_rx_drops += got > 0 || !ended;
        got = read_plain(vm, device->fd, data, capacity, may_borrow);
    }
    if (is_unusable(device, got, capacity) && (got > 0 || !ended)) {
        counters->net_rx_drops++;
        errno = EAGAIN;
        return -1;
    }
    return got;
}

enum device_answer net_receive_to(struct vm *vm, struct vm_counters *counters, uint64_t handle, gpa_t gpa,
                                  uint64_t *len, struct net_header *header)
{
    struct vm_device *device = net_device(vm, handle);
    if (!device)
        return DEVICE_INVALID;
    uint8_t *data = guest_buffer_at(&vm->memory, gpa, *len);
    if (!data)
        return DEVICE_BAD_RANGE;
    if (atomic_load_explicit(&net_of(device)->gone, memory_order_relaxed) || !*len)
        return DEVICE_NONE;
    const uint64_t capacity = *len < FRAME_MAX ? *len : FRAME_MAX;
    ssize_t got;
    if (net_of(device)->segments && net_vm(vm)->cut.frame) { /* NULL: no ring could be offered */
        got = read_segment(vm, device, data, capacity, counters);
    } else if (net_of(device)->has_header) {
        got = read_headed(vm, device, NULL, data, capacity, header, counters);
    } else {
        const bool may_borrow = may_borrow_byte_after(vm, gpa, capacity);
        got = read_plain(vm, device->fd, data, capacity, may_borrow);
        if (is_unusable(device, got, capacity))
            got = read_after_unusable(vm, device, data, capacity, may_borrow, got, counters);
    }
    if (got > 0) {
        counters->net_rx_packets++;
        counters->net_rx_bytes += (uint64_t)got;
        *len = (uint64_t)got;
        return DEVICE_DONE;
    }
    bool gone = got == 0;
    if (got < 0 && errno == EBADFD) {
        net_note_detached(vm, device, counters);
    } else if (got < 0 && errno != EAGAIN && errno != EINTR) {
        counters->net_rx_errors++;
        gone = errno == ECONNRESET;
    }
    if (gone)
        atomic_store_explicit(&net_of(device)->gone, true, memory_order_relaxed);
    return DEVICE_NONE;
}
