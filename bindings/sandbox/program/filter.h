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
 * instruction, which is what the kernel shows to a filter. One below 4 GiB would lie in the guest's memory:
 * every call but those of the vDSO then traps, so a mistake closes the door and does not open it.
 */
void filter_build(struct sock_filter copy[FILTER_LENGTH], uint64_t syscall_return_ip);

#endif
