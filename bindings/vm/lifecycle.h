/*
 * The life of a VM, for the command and for the library, in its order:
 *
 *   devices are opened    machine_expected(), machine_ring_mode(): what will probably be done with them
 *   a machine is made     machine_choose(), machine_open()
 *   it runs               its ops (machine.h); time_limit.h
 *   it has ended          exit_report.h
 *
 * Each of the two has for itself: the command its words, its signals and an image that is read to its place;
 * the library its handles, threads and forks (python/owner.c), and KVM's descriptors (tender/backend/kvm.py).
 */
#ifndef TENDER_LIFECYCLE_H
#define TENDER_LIFECYCLE_H

#include "machine.h"

/* The machine that was asked for; with NULL the first that a look at the host finds likely. */
const struct machine_ops *machine_expected(const struct machine_ops *asked);

/* How a guest of this image with a network, in so much memory, is offered a ring by this machine; both are
 * enum vm_ring_mode, `wanted` RING_ADAPTIVE leaves it to us. */
uint32_t machine_ring_mode(const struct machine_ops *ops, const struct elf_image *image, uint64_t mem_bytes,
                           uint32_t wanted);

/*
 * The machine to try next: the one that was asked for; with NULL one after the other, until one can be had.
 * `choice` is zeros at first. From the second call on `error` says why the last one cannot be had. NULL:
 * there is no other, and `error` is why.
 */
const struct machine_ops *machine_choose(struct machine_choice *choice, const struct machine_ops *asked,
                                         struct machine_error *error);

/* ops->open(), for what of the plan this machine serves: 0, or -1 with `error` filled. The ring mode of the
 * plan is the one that is wanted. */
int machine_open(struct machine *machine, const struct machine_ops *ops, const struct machine_plan *plan,
                 struct machine_error *error);

#endif
