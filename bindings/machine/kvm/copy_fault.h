/*
 * Disks as memory in a process that is not ours: the handler of SIGBUS that guarded_copy() wants
 * (disk_map.h).
 *
 * The one thing here that is the process's and not a VM's. It is there from the first disk that is mapped on,
 * takes the fault of a copy and hands every other to the handler that was there before. docs/library.md tells
 * embedders.
 */
#ifndef TENDER_COPY_FAULT_H
#define TENDER_COPY_FAULT_H

#include "vm.h"

/* At the start of a run, inside vm_enter(): disks are mapped at the first call that wants one, and if they
 * are, the handler is in place and this thread lets the signal in. */
void copy_fault_prepare(struct vm *vm);

#endif
