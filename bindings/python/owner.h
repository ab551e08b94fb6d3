/*
 * What a Vm and an Image of the library own: descriptors, mappings, a process, threads. Most of owner.c and
 * templates.c Python calls by a handle, and native.h declares it; here is the rest.
 *
 * An exception may come between any two instructions of Python, a KeyboardInterrupt for one. So nothing is
 * owned by a number on its way from a call to a variable: each call that obtains something puts it into a
 * structure that Python has already, and that is given back when Python's last reference to it goes.
 *
 * A handle is used by any thread at any time. A call takes a use of what it stands for, and close waits until
 * the last use is over; while a run is under way, close is refused. No lock is held while a guest runs.
 *
 * Answers: -ESTALE, it is closed; -ECHILD, this is a forked child of the process that made it, which has
 * copies of descriptors alone; -EBUSY, -EDEADLK and -EINPROGRESS, a run is under way: inside tn_run() on
 * another thread, on this one, on a thread of tn_start(); -EALREADY, it has run.
 */
#ifndef TENDER_OWNER_H
#define TENDER_OWNER_H

#include <stddef.h>
#include <stdint.h>

#include "owner_types.h"

struct elf_image;

/* An empty template of `bytes` in *fd, which stays the handle's: 0 or -errno. */
int owned_templates_make(struct image_handle *handle, uint64_t bytes, int *fd);

#endif
