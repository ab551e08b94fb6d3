/*
 * The command's process becomes the guest's: it confines itself, and executes tender-sandbox over itself. So
 * the process that a user has started is the guest: its number, its processor time and memory, its priority,
 * what stops and ends it.
 *
 * A process enters a pid namespace only by being born there, so this one is left out; and so is the
 * network's, which takes the kernel longer than the rest of a start, unless it is required. Neither the
 * filter nor Landlock knows a call that would find anything in them.
 */
#ifndef TENDER_SANDBOX_BECOME_H
#define TENDER_SANDBOX_BECOME_H

#include "machine.h"
#include "spawn.h"

/* Whether that serves these required layers. */
static inline bool sandbox_can_become(uint32_t required)
{
    return !(required & ISOLATION_PID_NAMESPACE);
}

/* All that can be refused is tried: 0 or -errno. */
int sandbox_become_prepare(struct sandbox *sandbox, const struct machine_plan *plan, int template_fd,
                           const char *program);

/* Comes back only with an event: it was stopped before, or the program cannot be executed. */
void sandbox_become(struct sandbox *sandbox);

#endif
