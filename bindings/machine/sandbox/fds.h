/*
 * The descriptors of the sandboxed process, by number. All others are closed before the guest is entered.
 *
 * The host side puts them there, the program uses them, and its filter (filter_rules.txt) is compiled with
 * these numbers, so that a descriptor's number alone says what may be done with it.
 */
#ifndef TENDER_SANDBOX_FDS_H
#define TENDER_SANDBOX_FDS_H

#define SANDBOX_FD_CONTROL  120 /* a socket to the monitor */
#define SANDBOX_FD_STOP     121 /* an eventfd; readable: stop */
#define SANDBOX_FD_CONSOLE  122
#define SANDBOX_FD_VM       123 /* a memfd, the VM as both sides see it */
#define SANDBOX_FD_TEMPLATE 124 /* a memfd, the image as start state */
#define SANDBOX_FD_NETWORK  125 /* a pidfd, whose network namespace is to be entered (config.h) */

#define SANDBOX_NET_FD_BASE   128 /* + handle */
#define SANDBOX_NET_FDS       64
#define SANDBOX_BLOCK_FD_BASE 192 /* + handle */
#define SANDBOX_BLOCK_FDS     64

#ifndef __ASSEMBLER__
_Static_assert(SANDBOX_FD_NETWORK < SANDBOX_NET_FD_BASE, "no single descriptor is a network's");
_Static_assert(SANDBOX_NET_FD_BASE + SANDBOX_NET_FDS <= SANDBOX_BLOCK_FD_BASE, "no network is a disk");
#endif

#define SANDBOX_FD_END 256 /* one past the last */

#endif
