/*
 * System calls of a program without a libc: one instruction, in entry_x86_64.S, which the filter knows by its
 * address. Answers are the kernel's: a value, or -errno.
 */
#ifndef TENDER_SANDBOX_SYSCALLS_H
#define TENDER_SANDBOX_SYSCALLS_H

#include <stdint.h>

/* The six arguments in the kernel's order. */
int64_t system_call(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t number);

/* The address behind the instruction: what the filter sees as the caller's. */
extern const char system_call_return[];

/* Finds clock_gettime() in the vDSO at `ehdr` (AT_SYSINFO_EHDR, 0: none); without it, it is a system call. */
void clock_find(const uint8_t *ehdr);

#endif
