/*
 * Opening what a VM is given: TAP interfaces, files, inherited descriptors; and what is wrong with each that
 * cannot be had. For the library and for the launcher: rules and messages stand here once.
 *
 * A descriptor that is returned is the caller's to close, and closed on exec. Functions that return a
 * descriptor or 0 return -1 with `error` filled when the host refuses. No allocation, nothing printed.
 */
#ifndef TENDER_DEVICE_H
#define TENDER_DEVICE_H

#include <stdbool.h>

#include "device_types.h"
#include "vm.h"

/*
 * How a guest with a network device of this image, in so much memory, is offered a ring; `wanted`
 * RING_ADAPTIVE leaves it to us. With one processor, worker and guest would wait for each other's turns; in
 * too little memory, the ring's room is better the guest's (solo5-hvt adds it on top of what was asked for,
 * and images are sized by that): then there is none, and frames go by hypercalls.
 */
uint32_t ring_mode_for(gpa_t image_end, uint64_t mem_bytes, uint32_t wanted);

/* How the networks of this guest are used; `ring_mode` is enum vm_ring_mode. There is room for the large
 * frames of one network, in the ring's. */
enum net_use net_use_for(const struct mft *manifest, uint32_t extensions, uint32_t ring_mode);

/*
 * A descriptor of the existing TAP interface `name`, not blocking, without packet information; *mtu is the
 * interface's. The rules are solo5-hvt's: it exists, is up, and has one queue. Nothing is created. With
 * a use other than NET_PLAIN a net header stands before each frame on it; without, what an earlier owner had
 * offloaded is off.
 */
int net_open_tap(const char *name, enum net_use use, uint32_t *mtu, struct device_error *error);

/* A TAP whose frames have a net header: sets its form and, if wanted, the offloads that it has, else none.
 * Anything else is left as it is. */
struct net_header_use {
    bool has_header;
    uint32_t offload; /* TENDER_OFFLOAD_... */
    bool segments;    /* TCP over IPv4 comes in large frames, and may go so */
    char name[16];    /* the interface's, whether it has the header or not; empty: it is no TAP */
};
struct net_header_use net_use_header(int fd, enum net_use use);

/* Segments are no longer joined and cut: there is no ring. */
void net_leave_segments(struct vm *vm);

/* Before such a descriptor is closed: the interface stays, and its next owner may know no header. */
void net_leave_header(int fd);
void net_leave_headers(const struct vm *vm); /* all of them */

/*
 * For the command, whose words may name only what it was given: -1 if `fd` is one of its own, or not open.
 * All of its own are closed on exec, and no such descriptor comes through an exec.
 */
int device_check_inherited(int fd, bool is_net, struct device_error *error);

/* A duplicate of `fd`, which is switched to not blocking. Refused is what does not carry one frame a call: a
 * stream, a file, a socket without a peer. */
int net_duplicate(int fd, struct device_error *error);

/* Attaches a descriptor of net_open_tap() that has lost its interface to the one that has its name by now, by
 * the same rules, and to be used as before. 0, or -1 with *error. */
int net_attach_again(const struct vm_device *device, struct device_error *error);
int net_attach_here(const struct vm *vm, uint32_t handle, struct device_error *error); /* a net_attacher */

/*
 * Behind an EVENT_NETWORK: looks at the TAPs of `vm` from handle *next on, and attaches again what is to be,
 * until there is something to say: an interface was deleted, is attached again, or cannot be. True: it stands
 * in `text` of NET_NEWS_BYTES, one line, and *next is where to go on. What the event was made of is not
 * believed, and not needed. `attach` does it; NULL: none is attached again.
 */
typedef int net_attacher(const struct vm *vm, uint32_t handle, struct device_error *error);
bool net_news(struct vm *vm, uint32_t *next, net_attacher *attach, char *text);

/* Six zero bytes become a random address: unicast, locally administered. 0 or -errno. */
int net_choose_mac(uint8_t mac[6]);

/* `raw`: the bytes are the disk's, whatever image format they look like; else such an image is refused. */
struct block_use {
    bool read_only;
    bool raw;
};

/*
 * A descriptor of the file or block device at `path`, locked (block.c says how), with its size in bytes.
 */
int block_open(const char *path, struct block_use use, uint64_t *capacity, struct device_error *error);

/* The same of the file behind `fd`, which block.c opens once more; `shown` stands for it in messages. Refused
 * is a descriptor that was opened in a way that the guest's reads or writes would fail by. */
int block_duplicate(int fd, const char *shown, struct block_use use, uint64_t *capacity,
                    struct device_error *error);

/* A descriptor of the file at `path`, for its use, without waiting: what would make open() wait, and what is
 * of no kind that serves, is refused. It is not blocking. A file to be written is made if there is none; what
 * is in it stays. `error` says the reason alone, without the path. */
int file_open(const char *path, enum file_use use, struct device_error *error);

/* 0 if a command may write its console or report to the inherited descriptor `fd`, else -1: it is open for
 * writing, is none of the command's own, and is of a kind that takes bytes in a row. */
int file_check_output(int fd, struct device_error *error);

/* 0 if a disk of `capacity` bytes, the guest's `name`, is a whole number of sectors, at least one. */
int block_check_capacity(const char *name, uint64_t capacity, uint32_t sector_bytes,
                         struct device_error *error);

/* Gives an open descriptor to a VM as its device `handle`; it stays the caller's to close. 0 or -errno.
 * `offload`: the image was granted the net offload. */
int vm_attach_net(struct vm *vm, uint32_t handle, int fd, enum net_use use);
/* The device is an interface that net_open_tap() found by its name; else it is for whoever gave the
 * descriptor to do something about one that was deleted. `again`: the next one of that name is attached. */
void vm_net_is_named(struct vm *vm, uint32_t handle, bool again);
bool vm_has_named_net(const struct vm *vm);
bool net_is_wanted_again(const struct vm_device *device);
/* Of a kind that keeps nothing but its descriptor. */
int vm_attach(struct vm *vm, uint32_t handle, uint32_t type, int fd);
int vm_attach_block(struct vm *vm, uint32_t handle, int fd, uint64_t capacity, bool read_only);

/* `text` as it may reach a terminal, in `to` of `room` bytes. What is no printable ASCII is an escape of its
 * byte, two hexadecimal digits; a byte from 0x80 on stays if `keep_high`. What finds no room is left out,
 * with three dots in its place. Returns `to`. */
char *text_escape(char *to, size_t room, const char *text, bool keep_high);

/* Fills `error`, control characters escaped; -1, so that a caller can return it. */
int device_failed(struct device_error *error, enum device_problem problem, int os_error, const char *format,
                  ...) __attribute__((format(printf, 4, 5)));

#endif
