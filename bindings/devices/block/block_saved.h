/* A disk as the process that runs the guest is told of it. */
#ifndef TENDER_BLOCK_SAVED_H
#define TENDER_BLOCK_SAVED_H

#include "device_ops.h"

struct block_saved {
    uint64_t capacity;
    uint32_t read_only, mappable_pages;
};
_Static_assert(sizeof(struct block_saved) <= DEVICE_SAVED_BYTES, "it has room");

#endif
