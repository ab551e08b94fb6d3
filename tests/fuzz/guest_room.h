/* Guest memory for a fuzzer: `bytes` of it, with 64 KiB on either side that nothing may touch. */
#ifndef TENDER_FUZZ_GUEST_ROOM_H
#define TENDER_FUZZ_GUEST_ROOM_H

#include <sys/mman.h>

#include "must.h"
#include "vm.h"

#define GUARD_BYTES 0x10000

static inline void guest_room(struct vm *vm, uint64_t bytes)
{
    uint8_t *room = mmap(NULL, bytes + 2 * GUARD_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(room != MAP_FAILED && mprotect(room + GUARD_BYTES, bytes, PROT_READ | PROT_WRITE) == 0);
    vm->memory.hva = room + GUARD_BYTES;
    vm->memory.bytes = bytes;
}

#endif
