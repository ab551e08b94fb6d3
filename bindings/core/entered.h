/*
 * Every value that enters the guest passes entered(): no handler, machine or emulated instruction writes
 * guest memory beside it. It is told behind the write, with the range that may have changed: more than did
 * where a system call failed half-way, and also where the frame was then dropped. A byte that is written
 * twice is told twice. So who copies each range as it is told has the guest's memory, but for what the guest
 * itself has written.
 *
 *   to fill:   data = guest_buffer_at(memory, gpa, len);  read(fd, data, ...);
 *              entered(memory, data, got, ...)
 *   to copy:   guest_put(memory, data, from, len, ...), which tells by itself
 *
 * The range is given by its address in this process, as guest_buffer_at() gave it; a listener hears the
 * guest's.
 */
#ifndef TENDER_ENTERED_H
#define TENDER_ENTERED_H

#include <string.h>

#include "guest_memory.h"

enum entered_source {
    ENTERED_START_STATE, /* what the image brings, before the first instruction or by a reset */
    ENTERED_BOOT_INFO,   /* with the manifest and the command line */
    ENTERED_ANSWER,      /* a hypercall's structure, or that of a request or a frame of a batch */
    ENTERED_FRAME,       /* bytes of a network device */
    ENTERED_BLOCK,       /* bytes of a disk */
    ENTERED_RING,        /* the network ring: indices, commits, frames that wait in its area */
    ENTERED_PROCESSOR,   /* the sandbox: an instruction or an exception that is emulated */
    ENTERED_HOST,        /* who holds the VM wrote it */
};

/* Who listens has one of these in a structure of its own, and sets guest_memory.listener while the guest does
 * not run. It is called on the thread that wrote: the vCPU's or the network ring's. `len` is not 0. */
struct entry_listener {
    void (*entered)(struct entry_listener *listener, gpa_t gpa, uint64_t len, enum entered_source source);
};

/* entered() for a memory that has a listener. */
void entered_tell(const struct guest_memory *memory, const void *at, uint64_t len,
                  enum entered_source source);

static inline void entered(const struct guest_memory *memory, const void *at, uint64_t len,
                           enum entered_source source)
{
    if (__builtin_expect(memory->listener != NULL, 0))
        entered_tell(memory, at, len, source);
}

/* [gpa, gpa + len) to be filled, as guest_memory_at() says; whoever fills it calls entered(). */
static inline void *guest_buffer_at(const struct guest_memory *memory, gpa_t gpa, uint64_t len)
{
    return guest_memory_at(memory, gpa, len, GUEST_WRITABLE);
}

/* Copies to guest memory. */
static inline void guest_put(const struct guest_memory *memory, void *to, const void *from, size_t len,
                             enum entered_source source)
{
    memcpy(to, from, len);
    entered(memory, to, len, source);
}

#endif
