/*
 * A system-call filter: every pwrite64 must lie in its own disk.
 *
 * In the sandbox it is a second one, for VMs whose disks RLIMIT_FSIZE cannot guard.
 *
 * The limit is one number for the process: it lets the smaller of two files grow to the size of the larger,
 * and it cannot be set where the console is a file, which grows. And a descriptor that may be written, given
 * for a disk that is read-only to the guest, has only the handlers between it and a guest that goes around
 * them. The kernel asks both filters and takes the stricter answer. Every system call then pays for a second
 * filter, so it is installed only where it is needed (spawn.c decides).
 *
 * The command on KVM has it as the end of its one filter, for any disk (kvm/rights.c).
 */
#ifndef TENDER_DISK_GUARD_H
#define TENDER_DISK_GUARD_H

#include <linux/filter.h>

#include "vm.h"

#define DISK_GUARD_LENGTH (7 * MFT_MAX_ENTRIES + 40) /* at most */

/* Writes the filter for the disks of `vm` to `code`; how many instructions it has. */
uint32_t disk_guard_build(struct sock_filter code[DISK_GUARD_LENGTH], const struct vm *vm);

#endif
