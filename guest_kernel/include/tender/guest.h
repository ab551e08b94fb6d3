/*
 * What an application inside a Tender unikernel may call. One header, no libc: include it, declare the
 * devices with TENDER_MANIFEST, write `int main(int argc, char **argv)`.
 *
 *     #include <tender/guest.h>
 *     TENDER_MANIFEST(0);
 *     int main(int argc, char **argv) { printf("Hello, World\n"); return 0; }
 *
 * The world: one CPU, no interrupts, no threads, no user mode. Memory is identity-mapped: a pointer is a
 * guest-physical address. SSE and x87 are on, AVX is off. Nothing here blocks
 * except poll_wait(). Nothing here may be called from a second stack that is smaller than 8 KiB.
 *
 * Promised: the names and contracts below. Not promised: addresses, the order of the heap, the text of a
 * trap dump beyond its last line, which says ABORT.
 */
#ifndef TENDER_GUEST_H
#define TENDER_GUEST_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tender_abi.h"
#include "tender_note.h"

/* The stack ends at the top of memory and has this size; below it is the heap. Nothing guards the border. */
#define GUEST_STACK_BYTES 65536

/* How a request to the host ended. AGAIN: nothing there now. EINVAL, EUNSPEC: refused, nothing was done. */
enum guest_result {
    GUEST_OK = HVT_R_OK,
    GUEST_AGAIN = HVT_R_AGAIN,
    GUEST_EINVAL = HVT_R_EINVAL,
    GUEST_EUNSPEC = HVT_R_EUNSPEC,
};

/* ---- The application ---- */

/*
 * Written by the application. argv[0] is the first guest argument (there is no program name), argv[argc]
 * is NULL. The returned number ends the guest as guest_exit() does.
 */
int main(int argc, char **argv);

/* Ends the guest. The low 8 bits of `status` become the tender's exit status; 255 means "aborted". */
_Noreturn void guest_exit(int status);

/* Prints "ABORT: " and the message as one line, then ends the guest with status 255. */
_Noreturn void panic(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- Command line (cmdline.c) ---- */

/* The command line as the tender wrote it: the arguments joined by single spaces, at most 8191 bytes. */
const char *guest_cmdline(void);

/*
 * The text behind `prefix` in the first argument that begins with it ("--port=" finds "--port=7"), or NULL.
 */
const char *args_value(int argc, char **argv, const char *prefix);

/* True if some argument is exactly `word`. */
bool args_has(int argc, char **argv, const char *word);

/*
 * Reads a whole decimal or 0x-hexadecimal number. False, and `value` unchanged, if the text is NULL, empty,
 * has anything behind the number, or passes 2^64-1.
 */
bool number_parse(const char *text, uint64_t *value);

/* ---- Console (console.c) ---- */

/* Sends `len` raw bytes to the tender's standard output in one request. Cannot fail. */
void console_write(const void *data, size_t len);

/*
 * %d %i %u %x %X %c %s %p %% with the lengths hh h l ll z j t, the flags 0 - + space #, a width, and a
 * precision for %s (numbers take it as minimal digits). No floating point. An unknown conversion is
 * printed as it stands. Text longer than 512 bytes reaches the console in several requests.
 * Returns the number of bytes written.
 */
int printf(const char *format, ...) __attribute__((format(printf, 1, 2)));
int vprintf(const char *format, va_list args) __attribute__((format(printf, 1, 0)));

/* As in C: never writes past `size`, always ends with NUL if size > 0, returns the untruncated length. */
int snprintf(char *to, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));
int vsnprintf(char *to, size_t size, const char *format, va_list args) __attribute__((format(printf, 3, 0)));

/* ---- Time (clock.c) ---- */

/* Nanoseconds since the guest started. Never goes back; no hypercall. */
uint64_t clock_monotonic(void);

/* Nanoseconds since 1970-01-01 UTC, as the host's clock says. One hypercall; may jump. */
uint64_t clock_wall(void);

/* Frequency of the time stamp counter in Hz. */
uint64_t clock_tsc_hz(void);

/* ---- Waiting (poll.c) ---- */

/*
 * Waits until a network device can be read, but `timeout_ns` at most (0: only looks; UINT64_MAX: for ever).
 * Returns how many devices are ready; `ready_set`, if not NULL, gets one bit a handle. May return 0 early:
 * callers loop on the clock. Block devices are never in the set.
 */
int poll_wait(uint64_t timeout_ns, uint64_t *ready_set);

/* ---- Devices (manifest.c, net.c, block.c) ---- */

/*
 * The handle of the device that the manifest declares with this name and type (MFT_NET_BASIC,
 * MFT_BLOCK_BASIC), or -1 if there is none or the tender did not attach it.
 */
int manifest_find(const char *name, uint32_t type);

/* The manifest as the tender filled it in; never NULL. Read only. */
const struct mft *guest_manifest(void);

struct net_device {
    uint64_t handle;
    uint8_t mac[6];
    uint16_t mtu;     /* bytes behind the 14-byte Ethernet header */
    uint32_t offload; /* TENDER_OFFLOAD_...: what net_submit() may ask of it; 0: nothing */
};

/*
 * Fills `device`. GUEST_EINVAL if no network device has this name. May be called again. The first call takes
 * heap for frames: where the tender grants batches two queues of 128 KiB, for frames that came and frames
 * that go; else, where it offers its network ring, 512 KiB in all. Without either, or where memory is short,
 * each frame is a hypercall.
 */
enum guest_result net_open(const char *name, struct net_device *device);

/*
 * Sends one frame: 14-byte Ethernet header, then at most mtu bytes, no checksum. GUEST_OK says that the host
 * took it, or dropped it as a wire may, or that it goes with the next batch: a frame that is written while
 * others wait to be read (net_read() would say GUEST_OK without asking the host) is held until they are read,
 * a poll_wait() finds none, or the guest exits; and not longer than 50 us from one net_write() to the next.
 * Order is kept. Who computes long between two frames calls net_flush().
 */
enum guest_result net_write(const struct net_device *device, const void *frame, size_t len);

/*
 * Takes one frame, `size` bytes at most, and puts its length into `len`. GUEST_AGAIN if none waits; never
 * blocks. net_frame_bytes() hold any frame of the interface as it was at the guest's start. A frame longer
 * than `size`, or than that and 2048 bytes (the MTU was raised meanwhile), is dropped, never cut. The host
 * counts it.
 */
enum guest_result net_read(const struct net_device *device, void *frame, size_t size, size_t *len);

/* The longest frame: Ethernet header, VLAN tag and mtu bytes. */
static inline size_t net_frame_bytes(const struct net_device *device)
{
    return (size_t)device->mtu + 14 + 4;
}

/* Frames that a net_read() with a smaller buffer than the one before found too long for it; the host had
 * given them to the guest, and does not count them. */
uint64_t net_dropped(const struct net_device *device);

/* Sends what net_write() holds, if it holds anything. */
void net_flush(const struct net_device *device);

/*
 * Sends tx_count frames, then takes as many as there are, rx_count at most; if none came, waits for
 * `timeout_ns` (0: does not) until one does. Both counts are at most TENDER_NET_BATCH_MAX. `frames` has first
 * those to be sent, with data and len; then buffers for those that come, of which the first `*received` get
 * their len. Each of these has its own `ret`, a guest_result; nothing is copied. It may return early with
 * nothing, as poll_wait(). Under a tender without batches it does all this call by call.
 *
 * With device->offload, a frame may ask in its further fields for a checksum, or stand for many packets, up
 * to 64 KiB in all; and so may one that comes: one without space is dropped.
 * One that asks for what the device has not is refused: GUEST_EINVAL. A unikernel that wants this says
 * so by a note of its own:
 *
 *     TENDER_EXTENSION_NOTE(TENDER_FEATURE_GATE | TENDER_FEATURE_NET_BATCH | TENDER_FEATURE_NET_OFFLOAD);
 *
 * and takes frames by net_submit(): net_read() gets only what is one packet, its checksum complete, and is
 * then a hypercall a frame.
 */
enum guest_result net_submit(const struct net_device *device, struct tender_net_frame *frames,
                             size_t tx_count, size_t rx_count, uint64_t timeout_ns, size_t *received);

struct block_device {
    uint64_t handle;
    uint64_t capacity; /* bytes */
    uint32_t block_size;
};

/* Fills `device`. GUEST_EINVAL if no block device has this name. May be called again. */
enum guest_result block_open(const char *name, struct block_device *device);

/*
 * Moves `len` bytes at byte `offset`, in one request however many they are; both must be multiples of
 * block_size and len must not be 0. Large requests cost less a byte. All or nothing; done when it returns,
 * though the host may still cache a write. GUEST_EINVAL if the range is crooked or leaves the device, another
 * error if the host refuses (a read-only image).
 */
enum guest_result block_read(const struct block_device *device, uint64_t offset, void *data, size_t len);
enum guest_result block_write(const struct block_device *device, uint64_t offset, const void *data,
                              size_t len);

/*
 * Many requests at once, served in order: fewer ways to the host and back, and reads that wait for the disk
 * wait together. Fill in op (TENDER_BLOCK_READ, _WRITE or _FLUSH), handle, offset, data and len, as
 * block_read() takes them; each gets its own `ret`, a guest_result. GUEST_OK if all have GUEST_OK, else the
 * first other. A request that is not whole blocks, or of another op, has GUEST_EINVAL and keeps all from
 * being sent: the others then have GUEST_AGAIN. Under a tender without the extension they are sent one by
 * one.
 */
enum guest_result block_submit(struct tender_block_request *requests, size_t count);

/*
 * Returns when all that was written to the device is on the host's medium. GUEST_EUNSPEC if the host could
 * not, or the tender has no such request: what is written is then safe when the host says so, not before.
 */
enum guest_result block_flush(const struct block_device *device);

/* ---- Memory (memory.c) ---- */

/* A 16-byte aligned piece of the heap with undefined content, or NULL if none is large enough. 0 counts as 1.
 */
void *guest_alloc(size_t bytes);

/* guest_alloc() of count * bytes, zeroed; NULL also if the product overflows. */
void *guest_calloc(size_t count, size_t bytes);

/* Grows or shrinks, perhaps elsewhere. On NULL the old piece is untouched. NULL as `old` allocates. */
void *guest_realloc(void *old, size_t bytes);

/* Gives a piece back and joins it with free neighbours. NULL does nothing; what is not a piece panics. */
void guest_free(void *piece);

struct heap_stats {
    size_t total_bytes;   /* the whole heap, with its own bookkeeping */
    size_t free_bytes;    /* sum of what could be allocated */
    size_t largest_bytes; /* the largest guest_alloc() that would succeed now */
    size_t free_pieces;
    size_t used_pieces;
};

/* Walks the whole heap, checks it on the way (panics if it is torn), and counts. */
struct heap_stats heap_check(void);

/* Bytes of memory that the tender gave the guest. */
uint64_t guest_memory_bytes(void);

/* ---- Bytes and text (string.c): as in C ---- */

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
