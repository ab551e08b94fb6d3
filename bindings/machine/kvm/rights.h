/* What a process gives up that does nothing but run one guest on KVM. */
#ifndef TENDER_RIGHTS_H
#define TENDER_RIGHTS_H

#include <stdint.h>

#include "deferred_teardown.h"
#include "machine.h"

/* No file of this process grows past the VM's largest disk, where neither the console nor what this process
 * writes itself is a file: by RLIMIT_FSIZE, which the host may already have set lower. */
void give_up_file_growth(const struct vm *vm, const struct confinement *keeps);

/*
 * For good, of this thread and of those it makes from now on: root's user and groups, capabilities and with
 * them the bounding set, new privileges, and by Landlock files, TCP, signals and abstract sockets. A host
 * that refuses a step loses that layer alone. Which layers stand: enum isolation_layer.
 */
uint32_t give_up_rights(void);

/*
 * Behind give_up_rights(), for a filter wants no new privileges. For good, of all threads: all system
 * calls but those of kvm_filter_rules.txt, and of kvm_filter_device_rules.txt those of the kinds of devices
 * that the guest has; with `stand_ins` all of these, and those that command/inherited_filter.c makes in
 * place of
 * refused ones. The filter knows the descriptors of `teardown`, `vm` and `keeps` by number. Where there is a
 * disk, one is written by pwrite64 alone, within what it holds, and one that is read-only to the guest not at
 * all; every other write goes to a network, the console, one of `keeps` or what wakes a wait, and to no other
 * descriptor: it may be the disk's file. Which layers stand.
 */
uint32_t give_up_calls(const struct deferred_teardown *teardown, const struct vm *vm,
                       const struct confinement *keeps);

#endif
