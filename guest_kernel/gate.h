/*
 * The gate: how a request leaves the guest. If the tender offers a gate page (abi/tender_abi.h), a
 * request calls a slot of it. Otherwise it executes an `out` instruction. gate.c holds the only
 * `out` instructions of a unikernel, one call site per hypercall, so that a host can find and patch
 * them.
 *
 * Each function passes the structure to the tender and returns when the structure contains the
 * answer. The structure may lie anywhere in guest memory: memory ends at 4 GiB, so its address has
 * 32 bits.
 */
#ifndef TENDER_GATE_H
#define TENDER_GATE_H

#include <stdbool.h>

#include "tender_abi.h"

/* Finds the gate page. Before this call, and under a tender without one, a request is an `out`. */
void gate_init(void);

/* gate_walltime(), gate_puts() and so on: one function for each row. */
#define HYPERCALL(number, name, structure, access, feature, device) void gate_##name(structure *call);
/* A hypercall of our extension. Returns false and does nothing if the tender did not grant it. */
#define EXTENSION_HYPERCALL(number, name, structure, access, feature, device)                                \
    bool gate_##name(structure *call);
#include "hypercalls.def"

/* Has neither a structure nor a slot in the gate page. Call it only if the host offers a network ring. */
void gate_net_kick(void);

static inline gpa_t gpa_of(const volatile void *pointer)
{
    return (gpa_t)(uintptr_t)pointer;
}

#endif
