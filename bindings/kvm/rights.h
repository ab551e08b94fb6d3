/* What a process gives up that does nothing but run one guest on KVM. */
#ifndef TENDER_RIGHTS_H
#define TENDER_RIGHTS_H

#include <stdbool.h>
#include <stdint.h>

#include "leave_behind.h"

/*
 * For good, of this thread and of those it makes from now on: root's user and groups, capabilities and with
 * them the bounding set, new privileges, and by Landlock files, TCP, signals and abstract sockets. A host
 * that refuses a step loses that layer alone. Which layers stand: enum isolation_layer.
 */
uint32_t give_up_rights(void);

/*
 * Behind give_up_rights(), for a filter wants no new privileges. For good, of all threads: all system calls
 * but those of kvm_filter_rules.txt, and of kvm_filter_device_rules.txt for a guest that has devices; with
 * `has_stand_ins` those that launcher/stranger.c makes in place of refused ones, too. The filter knows the
 * descriptors of `left` by their numbers. Which layers stand.
 */
uint32_t give_up_calls(const struct left_behind *left, bool has_devices, bool has_stand_ins);

#endif
