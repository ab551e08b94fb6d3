/*
 * The last close of the command's machine, deferred to a kernel thread.
 *
 * The last close of a VM waits in the kernel, 10 to 20 ms at 250 ticks a second. A process that exits
 * includes that wait, so everyone who waits for the process waits for it too. A thread (close_later.h)
 * does not help there: a process has ended only when all its threads have. So at the end the machine's
 * descriptors are put into the queue of a socket, and the socket into its own queue:
 *
 *     ours  <-------- pair -------->  looped            exit closes all descriptors; then only the right
 *                                       | queue         side refers to itself, and the kernel collects
 *                                       v               such garbage where a socket is closed: ours
 *                            [vm, vcpu, lock, looped]
 *
 * From Linux 6.9 on (and in stable kernels that have the change: 6.1.192 has it) a kernel thread collects the
 * garbage, so the kernel thread makes the last close. In older kernels the exiting process collects it, and
 * waits as it would have without this.
 *
 * One kernel thread makes all such closes of the host, one after the other. For each user, at most
 * DEFERRED_TEARDOWN_MAX of our machines may wait for it at a time; a further command closes its machine
 * itself. The waiting machines are counted by locks of one byte each, on an empty file that only this
 * user may open: /run/user/UID/tender-ends, for root /run/tender-ends. If that file is not available, or
 * another user may open it, the file is /dev/shm/tender-ends-UID. Without either file the command waits
 * for its machine's end. The kernel releases such a lock together with its descriptor, which comes after
 * the machine in the queue. That descriptor is read-only: an attacker who has taken over the handlers
 * cannot use it to fill a file, or to leave data in a file for another VM's process.
 */
#ifndef TENDER_DEFERRED_TEARDOWN_H
#define TENDER_DEFERRED_TEARDOWN_H

#include "kvm_machine.h"

#define DEFERRED_TEARDOWN_MAX        8
#define DEFERRED_TEARDOWN_FIRST_BYTE 0x74656e64 /* of the locks: an arbitrary offset that no one else uses */

struct deferred_teardown {
    int ours, looped; /* -1: the host gives no socket or no file; the command waits for the machine's end */
    int lock_fd;
};

/* Must be called before rights are given up and before the filter is installed (rights.h). The filter allows
 * teardown_defer() to use these descriptors and no others. */
void deferred_teardown_prepare(struct deferred_teardown *teardown);

/* The last call before exit: only exit closes descriptors. If a step fails, exit waits for the close. */
void teardown_defer(const struct deferred_teardown *teardown, const struct kvm_machine *machine);

#endif
