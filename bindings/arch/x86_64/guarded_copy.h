/* A copy from or to a mapped file. It may raise SIGBUS, and the handler of that signal ends the copy. */
#ifndef TENDER_GUARDED_COPY_H
#define TENDER_GUARDED_COPY_H

#include <stdint.h>

/* Copies 8-byte words. Returns how many were NOT copied. */
uint64_t guarded_copy(void *to, const void *from, uint64_t words);

/* The only instruction that may fault, and the address where execution continues after a fault. */
extern const uint8_t guarded_copy_may_fault[], guarded_copy_ends[];

#endif
