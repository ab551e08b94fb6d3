/* The rights that a process gives up if it does nothing but run one guest on KVM. */
#ifndef TENDER_RIGHTS_H
#define TENDER_RIGHTS_H

#include <stdint.h>

#include "deferred_teardown.h"
#include "machine.h"

/* No file that this process writes can grow past the VM's largest disk, by RLIMIT_FSIZE. This is not done if
 * the console or another output of this process is a file. The host may already have set a lower limit. */
void give_up_file_growth(const struct vm *vm, const struct confinement *keeps);

/*
 * Permanently, for this thread and for those that it makes from now on: gives up root's user and groups, all
 * capabilities with the bounding set, and new privileges; and by Landlock files, TCP, signals and abstract
 * sockets. If the host refuses a step, only that layer is missing. Returns the layers in force: enum
 * isolation_layer.
 */
uint32_t give_up_rights(void);

/*
 * Call it after give_up_rights(), because a filter needs no_new_privs. Permanently, for all threads, it
 * forbids all system calls except those of kvm_filter_rules.txt, and those of kvm_filter_device_rules.txt
 * for the kinds of devices that the guest has. With `replaces_calls` it allows all of these, and those that
 * command/inherited_filter.c makes in place of refused ones. The filter knows the descriptors of
 * `teardown`, `vm` and `keeps` by number. If the guest has a disk, a disk is written only by pwrite64,
 * within its capacity, and not at all if it is read-only to the guest. Every other write goes to a
 * network, the console, an output or the observer of `keeps`, or the descriptor that wakes a wait, and to no
 * other descriptor: that could be the disk's file. Returns the layers in force.
 */
uint32_t give_up_calls(const struct deferred_teardown *teardown, const struct vm *vm,
                       const struct confinement *keeps);

#endif
