/*
 * Disks as memory in a process that is not ours: the SIGBUS handler that guarded_copy() needs (disk_map.h).
 *
 * It is the only thing here that belongs to the process and not to a VM. It is installed when the first disk
 * is mapped. It handles the fault of a copy, and passes every other SIGBUS to the handler that was installed
 * before. docs/library.md tells embedders about it.
 */
#ifndef TENDER_COPY_FAULT_H
#define TENDER_COPY_FAULT_H

#include "vm.h"

/* Called at the start of a run, inside vm_enter(). Disks are mapped at the first call that needs one. Once
 * they are mapped, this installs the handler and unblocks SIGBUS on this thread. */
void copy_fault_prepare(struct vm *vm);

#endif
