/*
 * The seccomp filter of the process: filter_rules.txt, compiled when Tender is built.
 *
 * At that time only the address of the program's syscall instruction is not known, because the program is
 * loaded at a random address. The caller installs the filter.
 */
#ifndef TENDER_SANDBOX_FILTER_H
#define TENDER_SANDBOX_FILTER_H

#include <linux/filter.h>
#include <stdint.h>

#include "filter_shape.h" /* FILTER_LENGTH instructions */

/*
 * Writes the filter to `copy`. `syscall_return_ip` is the address after the program's syscall instruction,
 * which is what the kernel shows to a filter. An address in the guest's memory, which ends at 4 GiB, is not
 * accepted: then no address counts as that instruction, and every call except those of the vDSO traps or
 * kills.
 */
void filter_build(struct sock_filter copy[FILTER_LENGTH], uint64_t syscall_return_ip);

#endif
