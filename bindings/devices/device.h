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

#include "device_ops.h"
#include "device_types.h"

/*
 * How a guest with a network device of this image, in so much memory, is offered a ring; `wanted`
 * RING_ADAPTIVE leaves it to us. With one processor, worker and guest would wait for each other's turns; in
 * too little memory, the ring's area is better the guest's (solo5-hvt adds it on top of what was asked for,
 * and images are sized by that): then there is none, and frames go by hypercalls.
 */
uint32_t ring_mode_for(gpa_t image_end, uint64_t mem_bytes, uint32_t wanted);

/* Whom a device is for. */
struct device_guest {
    const struct mft *manifest;
    uint32_t extensions; /* TENDER_FEATURE_... of its image */
    uint32_t ring_mode;  /* enum vm_ring_mode that it will be offered */
};

/* Opens what `settings` ask for as a device of the type that `entry` has, and fills `entry` (device_ops.h).
 * A descriptor, or -1 with *error. */
int device_open(struct device_settings *settings, const struct device_guest *guest, struct mft_entry *entry,
                struct device_error *error);
/* The same as the VM's device `handle`; the descriptor is closed behind the VM. */
int device_attach(struct vm *vm, uint32_t handle, struct device_settings *settings,
                  const struct device_guest *guest, struct mft_entry *entry, struct device_error *error);

/* Each kind's, in its folder. */
#define DEVICE(type, name, word)                                                                             \
    device_opener name##_open;                                                                               \
    device_attacher name##_attach;
#include "devices.def"

/* Before such a descriptor is closed: the interface stays, and its next owner may know no header. */
void net_leave_header(int fd);
void net_leave_headers(const struct vm *vm); /* all of them */

/*
 * For the command, whose words may name only what it was given: -1 if `fd`, to be a device of that type, is
 * one of its own, or not open. All of its own are closed on exec, and no such descriptor comes through an
 * exec.
 */
int device_check_inherited(uint32_t type, int fd, struct device_error *error);

/* The device is a TAP that is to be attached again. */
bool net_is_wanted_again(const struct vm_device *device);
/* Attaches the descriptor of a TAP whose interface was deleted to the one that has its name by now, by the
 * same rules, and to be used as before. 0, or -1 with *error. */
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

/* A descriptor of the file at `path`, for its use, without waiting: what would make open() wait, and what is
 * of no kind that serves, is refused. It is not blocking. A file to be written is made if there is none; what
 * is in it stays. `error` says the reason alone, without the path. */
int file_open(const char *path, enum file_use use, struct device_error *error);

/* 0 if a command may write its console or report to the inherited descriptor `fd`, else -1: it is open for
 * writing, is none of the command's own, and is of a kind that takes bytes in a row. */
int file_check_output(int fd, struct device_error *error);

/* `text` as it may reach a terminal, in `to` of `capacity` bytes. What is no printable ASCII is an escape of
 * its byte, two hexadecimal digits; a byte from 0x80 on stays if `keep_high`. What does not fit is left out,
 * with three dots in its place. Returns `to`. */
char *text_escape(char *to, size_t capacity, const char *text, bool keep_high);

/* Fills `error`, control characters escaped; -1, so that a caller can return it. */
int device_failed(struct device_error *error, enum device_problem problem, int os_error, const char *format,
                  ...) __attribute__((format(printf, 4, 5)));

#endif
