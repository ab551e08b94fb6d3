/*
 * The descriptors of the sandbox process, by number. All others are closed before the guest is entered.
 *
 * The host side places them, the program uses them, and its filter (filter_rules.txt) is compiled with these
 * numbers. So a descriptor's number alone says what the program may do with it.
 */
#ifndef TENDER_SANDBOX_FDS_H
#define TENDER_SANDBOX_FDS_H

#include "tender_abi.h"

#define SANDBOX_FD_CONTROL  120 /* a socket to the monitor; without one, to the observer of the end */
#define SANDBOX_FD_STOP     121 /* an eventfd; readable: stop */
#define SANDBOX_FD_CONSOLE  122
#define SANDBOX_FD_VM       123 /* a memfd, the VM as both sides see it */
#define SANDBOX_FD_TEMPLATE 124 /* a memfd, the image as start state */
#define SANDBOX_FD_STDERR   125 /* for a program without an observer */
#define SANDBOX_FD_REPORT   126 /* likewise; next to stderr, so that the filter needs one range */

/* One range per kind of device (devices.def), by handle: SANDBOX_FDS_net and so on. */
enum sandbox_device_fds {
    SANDBOX_FDS_BEFORE = 127,
#define DEVICE(type, name, word)                                                                             \
    SANDBOX_FDS_##name, SANDBOX_FDS_LAST_##name = SANDBOX_FDS_##name + MFT_MAX_ENTRIES - 1,
#include "devices.def"
    SANDBOX_FD_END /* one past the last */
};
_Static_assert(SANDBOX_FD_REPORT <= SANDBOX_FDS_BEFORE, "no other descriptor lies in a device's range");

#endif
