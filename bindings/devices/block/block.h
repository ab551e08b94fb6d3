/* The parts of a disk's hypercalls that both the single calls (hc_block.c) and the batch (hc_block_batch.c)
 * are made of. */
#ifndef TENDER_BLOCK_H
#define TENDER_BLOCK_H

#include "disk.h"
#include "hypercall.h"

/* Bytes between two looks for a stop: a copy of so many takes less than a tenth of a millisecond. */
#define BLOCK_PIECE_BYTES 0x100000u

/* The disk of this handle, or NULL. Maps the disks, the first time that a guest asks for one. */
struct vm_device *block_device(struct vm *vm, uint64_t handle);

/* The disk has these bytes. */
bool block_range_is_valid(const struct vm_device *device, uint64_t offset, uint64_t len);

/* One whole transfer: CONTINUE with call->ret, or LEAVE: for an address that is not the guest's to name, or
 * for a stop or a signal amid a long one (vm->resume.bytes_done). */
enum verdict block_transfer(struct vm *vm, struct hvt_block_write *call, bool writing);

/* A stop was asked for, or a signal waits. */
bool block_is_wanted_elsewhere(struct vm *vm);

/* All that was written to the disk is on its medium, if the answer is HVT_R_OK. */
int32_t block_flush(struct vm *vm, uint64_t handle);

#endif
