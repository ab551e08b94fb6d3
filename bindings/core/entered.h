/*
 * entered() reports every write to guest memory that the guest does not make itself. No handler,
 * machine or emulated instruction writes guest memory without it. The call comes after the write
 * and names the range that may have changed. That range may be larger than the actual change, when
 * a system call failed half-way or the frame was then dropped. A byte that is written twice is
 * reported twice. So a listener that copies each range when it is reported has the guest's memory,
 * except for the guest's own writes.
 *
 *   to fill:   data = guest_buffer_at(memory, gpa, len);  read(fd, data, ...);
 *              entered(memory, data, got, ...)
 *   to copy:   guest_put(memory, data, from, len, ...), which calls entered()
 *
 * The caller gives the range by its address in this process, which guest_buffer_at() returned. A
 * listener gets the guest-physical address.
 */
#ifndef TENDER_ENTERED_H
#define TENDER_ENTERED_H

#include <string.h>

#include "guest_memory.h"

enum entered_source {
    ENTERED_START_STATE, /* the image's content, before the first instruction or by a reset */
    ENTERED_BOOT_INFO,   /* with the manifest and the command line */
    ENTERED_ANSWER,      /* the structure of a hypercall, or of a request or a frame of a batch */
    ENTERED_FRAME,       /* bytes of a network device */
    ENTERED_BLOCK,       /* bytes of a disk */
    ENTERED_RING,        /* the network ring: indices, commits, frames that wait in its area */
    ENTERED_PROCESSOR,   /* the sandbox: an instruction or an exception that is emulated */
    ENTERED_HOST,        /* written by the process that holds the VM */
};

/*
 * A listener has this structure as a part of its own structure, and sets guest_memory.listener
 * while the guest does not run. The function is called on the thread that wrote: the vCPU's or the
 * network ring's. `len` is not 0.
 */
struct entry_listener {
    void (*entered)(struct entry_listener *listener, gpa_t gpa, uint64_t len, enum entered_source source);
};

/* The part of entered() for memory that has a listener. */
void entered_report(const struct guest_memory *memory, const void *at, uint64_t len,
                    enum entered_source source);

static inline void entered(const struct guest_memory *memory, const void *at, uint64_t len,
                           enum entered_source source)
{
    if (__builtin_expect(memory->listener != NULL, 0))
        entered_report(memory, at, len, source);
}

/*
 * Returns the host address of [gpa, gpa + len) for a caller that fills it, as guest_memory_at()
 * does. The caller must then call entered().
 */
static inline void *guest_buffer_at(const struct guest_memory *memory, gpa_t gpa, uint64_t len)
{
    return guest_memory_at(memory, gpa, len, GUEST_WRITABLE);
}

/* Copies to guest memory, and reports it. */
static inline void guest_put(const struct guest_memory *memory, void *to, const void *from, size_t len,
                             enum entered_source source)
{
    memcpy(to, from, len);
    entered(memory, to, len, source);
}

#endif
