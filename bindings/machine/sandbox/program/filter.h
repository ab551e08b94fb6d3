/*
 * The seccomp filter that locks the process: what filter_rules.txt says, compiled when Tender is built.
 *
 * Only the address of the program's `syscall` instruction is not known then, since the program is loaded at a
 * random one. Installing it is the caller's.
 */
#ifndef TENDER_SANDBOX_FILTER_H
#define TENDER_SANDBOX_FILTER_H

#include <linux/filter.h>
#include <stdint.h>

#include "filter_shape.h" /* FILTER_LENGTH instructions */

/*
 * Writes the filter to `copy`. `syscall_return_ip` is the address behind the program's only `syscall`
 * instruction, which is what the kernel shows to a filter. One in the guest's memory, which ends at 4 GiB, is
 * not taken: then no place is the site, and every call but those of the vDSO traps or kills.
 */
void filter_build(struct sock_filter copy[FILTER_LENGTH], uint64_t syscall_return_ip);

#endif
