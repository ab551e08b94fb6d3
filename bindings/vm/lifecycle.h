/*
 * The life of a VM in its order, for the command and for the library:
 *
 *   devices are opened    machine_expected(), machine_ring_mode(): how they will probably be used
 *   a machine is made     machine_choose(), machine_open()
 *   it runs               its ops (machine.h); time_limit.h
 *   it has ended          exit_report.h
 *
 * Each of the two callers has parts of its own. The command has its arguments, its signals and an image that
 * is read directly to its place. The library has its handles, threads and forks (python/owner.c), and KVM's
 * descriptors (tender/backend/kvm.py).
 */
#ifndef TENDER_LIFECYCLE_H
#define TENDER_LIFECYCLE_H

#include "machine.h"

/* Returns the machine that was requested; for NULL, the first that seems likely after a look at the host. */
const struct machine_ops *machine_expected(const struct machine_ops *asked);

/* Returns how this machine offers a ring to a guest of this image that has a network and so much memory.
 * `wanted` and the result are enum vm_ring_mode; for RING_ADAPTIVE this function decides. */
uint32_t machine_ring_mode(const struct machine_ops *ops, const struct elf_image *image, uint64_t mem_bytes,
                           uint32_t wanted);

/*
 * Returns the machine to try next: the one that was requested, or for NULL one after the other, until one is
 * available. `choice` must be zeros at first. From the second call on, `error` says why the last machine is
 * not available. NULL: there is no other machine, and `error` says why.
 */
const struct machine_ops *machine_choose(struct machine_choice *choice, const struct machine_ops *asked,
                                         struct machine_error *error);

/* Calls ops->open() with the part of the plan that this machine supports: 0, or -1 with `error` filled. The
 * plan's ring mode is the requested one. */
int machine_open(struct machine *machine, const struct machine_ops *ops, const struct machine_plan *plan,
                 struct machine_error *error);

#endif
