/*
 * The functions that an application inside a Tender unikernel may call. This is the only header,
 * and there is no libc. Include it, declare the devices with TENDER_MANIFEST, and write main():
 *
 *     #include <tender/guest.h>
 *     TENDER_MANIFEST(0);
 *     int main(int argc, char **argv) { printf("Hello, World\n"); return 0; }
 *
 * The environment: one CPU, no interrupts, no threads, no user mode. Memory is identity-mapped: a
 * pointer is a guest-physical address. SSE and x87 are on, AVX is off. Only two functions wait for
 * a frame or for time to pass: poll_wait(), and net_submit() with a timeout. If an application uses
 * a second stack, that stack must have at least 8 KiB when it calls a function of this header.
 *
 * The names and contracts below are stable. These are not: addresses, the order of pieces in the
 * heap, and the text of a trap dump, except for its last line, which begins with "ABORT: ".
 */
#ifndef TENDER_GUEST_H
#define TENDER_GUEST_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tender_abi.h"
#include "tender_note.h"

/*
 * The size of the stack, which ends at the top of memory. The heap is below it, with no guard page
 * between.
 */
#define GUEST_STACK_BYTES 65536

/*
 * The result of a request to the host. GUEST_AGAIN: nothing is available now. GUEST_EINVAL: the
 * request was refused, and nothing was done. GUEST_EUNSPEC: the host could not do what was asked.
 */
enum guest_result {
    GUEST_OK = HVT_R_OK,
    GUEST_AGAIN = HVT_R_AGAIN,
    GUEST_EINVAL = HVT_R_EINVAL,
    GUEST_EUNSPEC = HVT_R_EUNSPEC,
};

/* ---- The application ---- */

/*
 * The application defines this function. argv[0] is the first guest argument, because there is no
 * program name. argv[argc] is NULL. Returning a number ends the guest as guest_exit() with that
 * number does, after the destructors have run.
 */
int main(int argc, char **argv);

/*
 * Ends the guest. The low 8 bits of `status` become the tender's exit status. 255 means "aborted".
 */
_Noreturn void guest_exit(int status);

/* Prints "ABORT: " and the message as one line, then ends the guest with status 255. */
_Noreturn void panic(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- Command line (cmdline.c) ---- */

/*
 * Returns the command line as the tender wrote it: the arguments, joined by single spaces, at most
 * 8191 bytes.
 */
const char *guest_cmdline(void);

/*
 * Returns the text after `prefix` in the first argument that begins with `prefix`: for "--port=",
 * the argument "--port=7" gives "7". Returns NULL if no argument begins with it.
 */
const char *args_value(int argc, char **argv, const char *prefix);

/* Returns true if one of the arguments is exactly `word`. */
bool args_has(int argc, char **argv, const char *word);

/*
 * Reads `text` as one decimal number, or as one hexadecimal number with 0x before it. Returns false
 * and leaves `value` unchanged if the text is NULL or empty, if other characters follow the number,
 * or if the number is greater than 2^64-1.
 */
bool number_parse(const char *text, uint64_t *value);

/* ---- Console (console.c) ---- */

/* Sends `len` raw bytes to the tender's standard output in one request. It cannot fail. */
void console_write(const void *data, size_t len);

/*
 * Prints to the console. The conversions are %d %i %u %x %X %c %s %p %%, with the lengths hh h l ll
 * z j t, the flags 0 - + space #, a width, and a precision. For %s the precision is the maximum
 * length; for a number it is the minimum number of digits. Floating point is not supported. An
 * unknown conversion is printed unchanged. Text longer than 512 bytes reaches the console in
 * several requests. Returns the number of bytes written.
 */
int printf(const char *format, ...) __attribute__((format(printf, 1, 2)));
int vprintf(const char *format, va_list args) __attribute__((format(printf, 1, 0)));

/*
 * As in C: they write at most `size` bytes, the last of which is a NUL if size > 0, and return the
 * length that the text has without truncation.
 */
int snprintf(char *to, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));
int vsnprintf(char *to, size_t size, const char *format, va_list args) __attribute__((format(printf, 3, 0)));

/* ---- Time (clock.c) ---- */

/* Returns the nanoseconds since the guest started. The value never decreases. It needs no hypercall. */
uint64_t clock_monotonic(void);

/*
 * Returns the nanoseconds since 1970-01-01 UTC by the host's clock. It costs one hypercall. The
 * value may jump, because the host's clock may be set.
 */
uint64_t clock_wall(void);

/* Returns the frequency of the time stamp counter in Hz. */
uint64_t clock_tsc_hz(void);

/* ---- Waiting (poll.c) ---- */

/*
 * Waits until a network device can be read, for at most `timeout_ns`. 0 checks once and does not
 * wait; UINT64_MAX waits without limit. Returns the number of devices that are ready. If
 * `ready_set` is not NULL, it receives one bit per ready device: bit N for handle N. Block devices
 * are never in the set. The function may return 0 before the time is over, so a caller that needs
 * the full time loops and checks the clock.
 */
int poll_wait(uint64_t timeout_ns, uint64_t *ready_set);

/* ---- Devices (manifest.c, net.c, block.c) ---- */

/*
 * Returns the handle of the device that the manifest declares with this name and type
 * (MFT_NET_BASIC or MFT_BLOCK_BASIC). Returns -1 if the manifest declares no such device, or the
 * tender did not attach it.
 */
int manifest_find(const char *name, uint32_t type);

/* Returns the manifest as the tender filled it in. It is never NULL, and it is read-only. */
const struct mft *guest_manifest(void);

struct net_device {
    uint64_t handle;
    uint8_t mac[6];
    uint16_t mtu;     /* maximum bytes after the 14-byte Ethernet header */
    uint32_t offload; /* TENDER_OFFLOAD_... bits: the work that net_submit() may leave to it; 0: none */
};

/*
 * Fills `device`. Returns GUEST_EINVAL if no attached network device has this name. It may be
 * called again for the same device.
 *
 * The first call takes memory for frames from the heap. If the tender grants batches and the device
 * has no offload, each device gets two queues: one for received frames and one for frames to send.
 * A queue takes 64 KiB with an ordinary MTU, and about 128 KiB with a large one. Otherwise, if the
 * tender offers its network ring, the buffers take 512 KiB for all devices together. With neither,
 * or when the heap has too little space, each frame costs one hypercall.
 */
enum guest_result net_open(const char *name, struct net_device *device);

/*
 * Sends one frame: a 14-byte Ethernet header, then at most mtu bytes, without a frame check
 * sequence. GUEST_OK means that the host accepted the frame, or dropped it as a wire may, or that
 * the guest library holds it for the next batch.
 *
 * The library holds a frame while received frames wait in its queue, that is, while net_read()
 * would return GUEST_OK without asking the host. It sends the held frames when the received frames
 * have been read, when poll_wait() finds no frame to read, and when the guest exits. A net_write()
 * that comes more than 50 us after the first held frame was written sends them too. Frames keep
 * their order. An application that computes for a long time between two frames calls net_flush().
 */
enum guest_result net_write(const struct net_device *device, const void *frame, size_t len);

/*
 * Takes one received frame of at most `size` bytes and stores its length in `len`. Returns
 * GUEST_AGAIN if no frame waits; it never blocks.
 *
 * A buffer of net_frame_bytes() bytes holds any frame of the interface as it was at the guest's
 * start. A frame that is longer than `size` is dropped, never truncated. With queues (see
 * net_open()) so is a frame that is longer than both net_frame_bytes() and 2048 bytes; such a frame
 * comes only if the interface's MTU was raised after the start. The host counts the dropped frames,
 * except those that net_dropped() counts.
 */
enum guest_result net_read(const struct net_device *device, void *frame, size_t size, size_t *len);

/* Returns the length of the longest frame: Ethernet header, VLAN tag and mtu bytes. */
static inline size_t net_frame_bytes(const struct net_device *device)
{
    return (size_t)device->mtu + 14 + 4;
}

/*
 * Returns how many received frames the guest library dropped because net_read() was called with a
 * smaller buffer than the call before. The host had already passed these frames to the guest, and
 * does not count them.
 */
uint64_t net_dropped(const struct net_device *device);

/* Sends the frames that net_write() holds, if there are any. */
void net_flush(const struct net_device *device);

/*
 * Sends tx_count frames, then takes the received frames that wait, at most rx_count of them. If no
 * frame was received, it waits for one, for at most `timeout_ns` (0: it does not wait). Like
 * poll_wait() it may return early without a frame. Both counts are at most TENDER_NET_BATCH_MAX,
 * otherwise it returns GUEST_EINVAL.
 *
 * `frames` is an array. First come the frames to send, with `data` and `len` set. Then come the
 * buffers for received frames, with `data` and the size in `len`; in the first `*received` of them,
 * `len` becomes the length of the frame. Each of these frames gets its own `ret`, a guest_result.
 * Frames are not copied, except those that already waited in the library's queue. Under a tender
 * that grants no batch, the function does the same work with one call per frame.
 *
 * With device->offload, the further fields of a frame to send may ask for a checksum, or make the
 * frame stand for many packets of up to 64 KiB in all. A received frame may do the same; one that
 * does not fit into its buffer is dropped. A frame that asks for an offload that the device does
 * not have gets GUEST_EINVAL. A unikernel asks for offloads with a note of its own:
 *
 *     TENDER_EXTENSION_NOTE(TENDER_FEATURE_GATE | TENDER_FEATURE_NET_BATCH | TENDER_FEATURE_NET_OFFLOAD);
 *
 * It then receives with net_submit(). net_read() still works, but it receives only frames that are
 * a single packet, with the checksum completed, and each costs one hypercall.
 */
enum guest_result net_submit(const struct net_device *device, struct tender_net_frame *frames,
                             size_t tx_count, size_t rx_count, uint64_t timeout_ns, size_t *received);

struct block_device {
    uint64_t handle;
    uint64_t capacity; /* bytes */
    uint32_t block_size;
};

/*
 * Fills `device`. Returns GUEST_EINVAL if no attached block device has this name. It may be called
 * again for the same device.
 */
enum guest_result block_open(const char *name, struct block_device *device);

/*
 * Reads or writes `len` bytes at byte `offset`, always in one request. Both must be multiples of
 * block_size, and `len` must not be 0. A large request costs less per byte than several small ones.
 * The request is complete when the function returns, but the host may still hold written data in
 * its cache: see block_flush(). Returns GUEST_EINVAL if the range is not whole blocks or not within
 * the device, and GUEST_EUNSPEC if the host refuses the request (for example a write to a read-only
 * image) or fails. After a failure, part of the range may have been transferred.
 */
enum guest_result block_read(const struct block_device *device, uint64_t offset, void *data, size_t len);
enum guest_result block_write(const struct block_device *device, uint64_t offset, const void *data,
                              size_t len);

/*
 * Submits many requests at once. The host serves them in order. This takes fewer exits to the host,
 * and reads that have to wait for the disk wait at the same time. Each request needs `op`
 * (TENDER_BLOCK_READ, TENDER_BLOCK_WRITE or TENDER_BLOCK_FLUSH), `handle`, and for reads and writes
 * `offset`, `data` and `len`, with the same rules as for block_read(). Each request gets its own
 * `ret`, a guest_result.
 *
 * Returns GUEST_OK if all requests have GUEST_OK, otherwise the first other result. If one request
 * is invalid (no such device, not whole blocks, or another `op`), no request is sent: the invalid
 * ones get GUEST_EINVAL and the others GUEST_AGAIN. Under a tender without the block batch,
 * requests are sent one by one.
 */
enum guest_result block_submit(struct tender_block_request *requests, size_t count);

/*
 * Returns after everything that was written to the device is on the host's storage medium. Returns
 * GUEST_EUNSPEC if the host could not do it, or if the tender has no such request. The guest then
 * cannot know when its writes are on the medium: the host decides.
 */
enum guest_result block_flush(const struct block_device *device);

/* ---- Memory (memory.c) ---- */

/*
 * Returns a piece of the heap, 16-byte aligned and with undefined content, or NULL if no free piece
 * is large enough. 0 bytes counts as 1.
 */
void *guest_alloc(size_t bytes);

/* Like guest_alloc(count * bytes), with the piece zeroed. Returns NULL also if the product overflows. */
void *guest_calloc(size_t count, size_t bytes);

/*
 * Changes the size of a piece, and may move it. If it returns NULL, the old piece is unchanged. If
 * `old` is NULL, it allocates.
 */
void *guest_realloc(void *old, size_t bytes);

/*
 * Frees a piece and joins it with free neighbours. NULL does nothing. Any other pointer that is not
 * to an allocated piece is a panic.
 */
void guest_free(void *piece);

struct heap_stats {
    size_t total_bytes;   /* the whole heap, including its own bookkeeping */
    size_t free_bytes;    /* the sum of the sizes that the free pieces can hold */
    size_t largest_bytes; /* the largest guest_alloc() that would succeed now */
    size_t free_pieces;
    size_t used_pieces;
};

/*
 * Walks the whole heap, checks that it is consistent (and panics if it is not), and returns its
 * numbers.
 */
struct heap_stats heap_check(void);

/* Returns the number of bytes of memory that the tender gave the guest. */
uint64_t guest_memory_bytes(void);

/* ---- Bytes and text (string.c): the functions of the C standard ---- */

void *memcpy(void *restrict to, const void *restrict from, size_t len);
void *memmove(void *to, const void *from, size_t len);
void *memset(void *to, int byte, size_t len);
int memcmp(const void *a, const void *b, size_t len);
void *memchr(const void *bytes, int byte, size_t len);
size_t strlen(const char *text);
size_t strnlen(const char *text, size_t max);
int strcmp(const char *a, const char *b);
int strncmp(const char *a, const char *b, size_t max);
char *strchr(const char *text, int c);

#endif
