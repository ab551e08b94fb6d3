/* What a process gives up that does nothing but run one guest on KVM. */
#ifndef TENDER_RIGHTS_H
#define TENDER_RIGHTS_H

#include <stdbool.h>

#include "leave_behind.h"

/*
 * For good, and in this order: capabilities, of this thread and of those it makes from now on; then new
 * privileges and all system calls but those of kvm_filter_rules.txt, and of
 * kvm_filter_device_rules.txt for a guest that has devices, of all threads. A host that refuses a
 * step loses that wall alone. The filter knows the descriptors of `left` by their numbers.
 */
void give_up_capabilities(void);
void give_up_calls(const struct left_behind *left, bool has_devices);

#endif
