/*
 * A system-call filter: every pwrite64 must lie within its own disk.
 *
 * In the sandbox this is a second filter. It is for VMs whose disks RLIMIT_FSIZE cannot guard.
 *
 * RLIMIT_FSIZE is one number for the whole process. It lets the smaller of two files grow to the size of
 * the larger one, and it cannot be set where the console is a file, which grows. RLIMIT_FSIZE also does not
 * protect a disk that is read-only to the guest but whose descriptor was opened for writing: without this
 * filter, only the hypercall handlers stand between that descriptor and a guest that goes around them. The
 * kernel asks both filters and takes the stricter answer. Every system call then pays for a second filter,
 * so it is installed only where it is needed (spawn.c decides).
 *
 * On KVM the command appends this filter to its only filter, for any disk (kvm/rights.c).
 */
#ifndef TENDER_DISK_GUARD_H
#define TENDER_DISK_GUARD_H

#include <linux/filter.h>

#include "vm.h"

#define DISK_GUARD_LENGTH (7 * MFT_MAX_ENTRIES + 40) /* at most */

/* Writes the filter for the disks of `vm` to `code`. Returns the number of instructions. */
uint32_t disk_guard_build(struct sock_filter code[DISK_GUARD_LENGTH], const struct vm *vm);

#endif
