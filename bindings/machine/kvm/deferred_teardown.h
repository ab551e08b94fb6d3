/*
 * The end of the command's machine, left to a thread of the kernel.
 *
 * The last close of a VM waits in the kernel, 10 to 20 ms at 250 ticks a second, and a process that exits has
 * that wait in it; so whoever waits for the process does too. A thread (close_later.h) does not help there: a
 * process has ended when all its threads have. So at the end the machine's descriptors are put into the queue
 * of a socket, and the socket into its own queue:
 *
 *     ours  <-------- pair -------->  looped            exit closes all descriptors; what is left of the
 *                                       | queue         right side is known by itself alone, and the kernel
 *                                       v               collects such garbage where a socket is closed: ours
 *                            [vm, vcpu, lock, looped]
 *
 * From Linux 6.9 on (and in stable kernels that took it over: 6.1.192 has it) a kernel thread collects, and
 * so the last close is its. Before that the process that exits does, and waits as it would have.
 *
 * One kernel thread makes all such closes of the host, one after the other. DEFERRED_TEARDOWN_MAX of ours
 * may wait
 * for it at a time, of each user; who comes then closes its machine itself. They are counted by locks of one
 * byte each, on an empty file that this user alone may open: /run/user/UID/tender-ends, for root
 * /run/tender-ends; where that cannot be had, or somebody else may open it, /dev/shm/tender-ends-UID; without
 * either the machine's end is waited for. The kernel lets go of such a lock with the descriptor, which is
 * behind the machine in the queue. That descriptor reads alone: whoever has broken into the handlers finds
 * no file in it to fill, or to leave something in for another VM's process.
 */
#ifndef TENDER_DEFERRED_TEARDOWN_H
#define TENDER_DEFERRED_TEARDOWN_H

#include "kvm_machine.h"

#define DEFERRED_TEARDOWN_MAX        8
#define DEFERRED_TEARDOWN_FIRST_BYTE 0x74656e64 /* of the locks: some number that nobody else may think of */

struct deferred_teardown {
    int ours, looped; /* -1: the host gives no socket or no file; the machine's end is waited for */
    int lock_fd;
};

/* Before rights are given up, and before the filter (rights.h), which lets teardown_defer() have these
 * descriptors and no other. */
void deferred_teardown_prepare(struct deferred_teardown *teardown);

/* The last thing but exit: descriptors are closed by that alone. What fails is waited for. */
void teardown_defer(const struct deferred_teardown *teardown, const struct kvm_machine *machine);

#endif
