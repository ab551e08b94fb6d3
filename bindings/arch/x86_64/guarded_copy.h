/* A copy from or to memory of a file, which may raise SIGBUS: whoever handles it ends the copy. */
#ifndef TENDER_GUARDED_COPY_H
#define TENDER_GUARDED_COPY_H

#include <stdint.h>

/* How many of the 8-byte words were copied. */
uint64_t guarded_copy(void *to, const void *from, uint64_t words);

/* The one instruction that may fault, and where it goes on then. */
extern const uint8_t guarded_copy_may_fault[], guarded_copy_ends[];

#endif
