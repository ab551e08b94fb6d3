/*
 * The command's process becomes the guest's process: it confines itself and executes tender-sandbox. So the
 * process that a user has started is the guest: its process id, its processor time and memory, its priority,
 * and the signals that stop and end it.
 *
 * A process can be in a new pid namespace only from its birth, so this layer is left out here. The network
 * namespace is left out too unless it is required, because it takes the kernel longer than the rest of a
 * start. Neither the filter nor Landlock allows a call that could reach anything in these namespaces.
 */
#ifndef TENDER_SANDBOX_BECOME_H
#define TENDER_SANDBOX_BECOME_H

#include "machine.h"
#include "spawn.h"

/* Whether this can provide the required layers. */
static inline bool sandbox_can_become(uint32_t required)
{
    return !(required & ISOLATION_PID_NAMESPACE);
}

/* Tries everything that can be refused: 0 or -errno. */
int sandbox_become_prepare(struct sandbox *sandbox, const struct machine_plan *plan, int template_fd,
                           const char *program);

/* Returns only with an event: the run was stopped before, or the program cannot be executed. */
void sandbox_become(struct sandbox *sandbox);

#endif
