/*
 * What a Vm and an Image of the library own: descriptors, mappings, a process, threads. Python calls most of
 * owner.c and templates.c with a handle; native.h declares those functions, and this header the rest.
 *
 * An exception, such as a KeyboardInterrupt, may come between any two instructions of Python. So ownership is
 * never in a number on its way from a call to a variable: each call that obtains something puts it into a
 * structure that Python already has. The structure is released when Python's last reference to it goes.
 *
 * Any thread may use a handle at any time. A call takes a use of the object behind the handle, and close
 * waits until the last use has ended. While the VM runs, close is refused. No lock is held while a guest
 * runs.
 *
 * Errors: -ESTALE, the handle is closed; -ECHILD, this process is a fork of the process that made the object,
 * and has only copies of its descriptors; -EBUSY, -EDEADLK and -EINPROGRESS, the VM runs: inside tn_run() on
 * another thread, on this thread, on a thread of tn_start(); -EALREADY, it has run.
 */
#ifndef TENDER_OWNER_H
#define TENDER_OWNER_H

#include <stddef.h>
#include <stdint.h>

#include "owner_types.h"

struct elf_image;

/* Makes an empty template of `bytes`. *fd is its descriptor, which the handle owns: 0 or -errno. */
int owned_templates_make(struct image_handle *handle, uint64_t bytes, int *fd);

#endif
