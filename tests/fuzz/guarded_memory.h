/* Guest memory for a fuzzer: `bytes` long, with 64 KiB on either side that no code may touch. */
#ifndef TENDER_FUZZ_GUARDED_MEMORY_H
#define TENDER_FUZZ_GUARDED_MEMORY_H

#include <sys/mman.h>

#include "must.h"
#include "vm.h"

#define GUARD_BYTES 0x10000

static inline void guarded_memory(struct vm *vm, uint64_t bytes)
{
    uint8_t *mapping = mmap(NULL, bytes + 2 * GUARD_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(mapping != MAP_FAILED && mprotect(mapping + GUARD_BYTES, bytes, PROT_READ | PROT_WRITE) == 0);
    vm->memory.hva = mapping + GUARD_BYTES;
    vm->memory.bytes = bytes;
}

#endif
