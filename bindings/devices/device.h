/*
 * Opens the devices that a VM gets (TAP interfaces, files, inherited descriptors), and reports why
 * one cannot be opened. The library and the launcher both use it, so each rule and each message
 * exists only once.
 *
 * A returned descriptor is close-on-exec, and the caller must close it. Functions that return a
 * descriptor or 0 return -1 with `error` filled if the host refuses. Nothing here allocates memory
 * or prints.
 */
#ifndef TENDER_DEVICE_H
#define TENDER_DEVICE_H

#include <stdbool.h>

#include "device_ops.h"
#include "device_types.h"

/*
 * Returns how a ring is offered to a guest with a network device, for an image that ends at
 * `image_end` and memory of `mem_bytes`. With `wanted` RING_ADAPTIVE this function decides. It
 * returns RING_NONE, and frames go by hypercalls, in two cases. With one processor, worker and
 * guest would wait for each other's turns. With little memory, the guest needs the ring's area
 * itself: solo5-hvt adds that area to the memory that was asked for, and images are sized by that.
 */
uint32_t ring_mode_for(gpa_t image_end, uint64_t mem_bytes, uint32_t wanted);

/* The guest that a device is for. */
struct device_guest {
    const struct mft *manifest;
    uint32_t extensions; /* the image's TENDER_FEATURE_... bits */
    uint32_t ring_mode;  /* the enum vm_ring_mode that the guest will be offered */
};

/*
 * Opens what `settings` ask for as a device of the type of `entry`, and fills `entry`
 * (device_ops.h). Returns a descriptor, or -1 with *error.
 */
int device_open(struct device_settings *settings, const struct device_guest *guest, struct mft_entry *entry,
                struct device_error *error);
/* The same, and makes it the VM's device `handle`. The caller closes the descriptor after the VM. */
int device_attach(struct vm *vm, uint32_t handle, struct device_settings *settings,
                  const struct device_guest *guest, struct mft_entry *entry, struct device_error *error);

/* The functions of each kind, which are in its folder. */
#define DEVICE(type, name, word)                                                                             \
    device_opener name##_open;                                                                               \
    device_attacher name##_attach;
#include "devices.def"

/*
 * Call it before such a descriptor is closed: it switches the interface's offloads off. The
 * interface stays, and its next owner may not use the header.
 */
void net_leave_header(int fd);
void net_leave_headers(const struct vm *vm); /* the same for all networks of the VM that use the header */

/*
 * For the command, whose options may name only descriptors that it inherited. Returns -1 if `fd`,
 * which becomes a device of that type, is not open or was opened by the command itself. All of the
 * command's own descriptors are close-on-exec, and an inherited one never is.
 */
int device_check_inherited(uint32_t type, int fd, struct device_error *error);

/* Whether the device is a TAP that takes a new interface when its interface was deleted. */
bool net_is_wanted_again(const struct vm_device *device);
/*
 * Attaches the descriptor of a TAP whose interface was deleted to the interface that has the same
 * name now. The same rules hold, and the device is used as before. Returns 0, or -1 with *error.
 */
int net_attach_again(const struct vm_device *device, struct device_error *error);
int net_attach_here(const struct vm *vm, uint32_t handle, struct device_error *error); /* a net_attacher */

/*
 * Call it after an EVENT_NETWORK. It checks the TAPs of `vm` from handle *next on, and attaches a
 * new interface where one is wanted, until there is a change to report: an interface was deleted,
 * is attached again, or cannot be attached. Then it returns true with one line in `text`, which has
 * NET_NEWS_BYTES, and *next is the handle to continue with. It uses nothing from the event, which
 * may be false. `attach` attaches an interface; NULL: none is attached again.
 */
typedef int net_attacher(const struct vm *vm, uint32_t handle, struct device_error *error);
bool net_news(struct vm *vm, uint32_t *next, net_attacher *attach, char *text);

/*
 * Opens the file at `path` for this use. It never waits: a file that would make open() wait, or
 * whose kind does not serve, is refused. The descriptor is non-blocking. A file for writing is
 * created if it does not exist, and is not truncated. `error` contains only the reason, without the
 * path.
 */
int file_open(const char *path, enum file_use use, struct device_error *error);

/*
 * Returns 0 if a command may write its console or report to the inherited descriptor `fd`: it is
 * open for writing, was not opened by the command itself, and its kind takes a sequence of bytes.
 * Otherwise -1.
 */
int file_check_output(int fd, struct device_error *error);

/*
 * Copies `text` to `to`, of `capacity` bytes, in a form that is safe for a terminal. A byte that is
 * not printable ASCII becomes an escape with two hexadecimal digits; a byte from 0x80 on stays if
 * `keep_high`. If the text does not fit, its end is replaced by three dots. Returns `to`.
 */
char *text_escape(char *to, size_t capacity, const char *text, bool keep_high);

/* Fills `error`, with control characters escaped. Returns -1, so that a caller can return the result. */
int device_failed(struct device_error *error, enum device_problem problem, int os_error, const char *format,
                  ...) __attribute__((format(printf, 4, 5)));

#endif
