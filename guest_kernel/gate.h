/*
 * The gate: how a request leaves the guest. By a slot of the gate page, if the tender offers one
 * (abi/tender_abi.h), otherwise by `out`: gate.c holds the only such instructions of a unikernel, one site a
 * hypercall, so that a host can find and patch them.
 *
 * Each function passes the structure to the tender and returns when it has been answered in place. The
 * structure lies anywhere in guest memory (a 32-bit address: memory ends at 4 GiB).
 */
#ifndef TENDER_GATE_H
#define TENDER_GATE_H

#include <stdbool.h>

#include "tender_abi.h"

/* Looks whether there is a gate page; before it, and under a tender that has none, a request is an `out`. */
void gate_init(void);

/* gate_walltime(), gate_puts() and so on, one a row. */
#define HYPERCALL(number, name, structure, access, feature, device) void gate_##name(structure *call);
/* One of ours: false, and nothing done, where the tender did not grant it. */
#define EXTENSION_HYPERCALL(number, name, structure, access, feature, device)                                \
    bool gate_##name(structure *call);
#include "hypercalls.def"

void gate_net_kick(void); /* no structure, and no slot of the page: only who offers a ring is kicked */

static inline gpa_t gpa_of(const volatile void *pointer)
{
    return (gpa_t)(uintptr_t)pointer;
}

#endif
