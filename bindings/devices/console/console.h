/* Which descriptor the guest's console goes to. */
#ifndef TENDER_CONSOLE_H
#define TENDER_CONSOLE_H

#include "vm.h"

/* `fd` stays the caller's and open as long as the VM; or CONSOLE_DISCARD, CONSOLE_PYTHON. 0 or -errno. */
int console_set(struct vm *vm, int fd);

/* Writes what the guest has at `gpa`, which is at `data` for us. EXIT: it is to be called again, with what
 * stands in vm->resume, or the piece in the event is whose holds the VM. */
enum verdict console_write(struct vm *vm, gpa_t gpa, const uint8_t *data, uint64_t len);

/*
 * A terminal once more, so that a write to it never waits; -1 if `fd` is none, or cannot be opened. The
 * caller's to close.
 *
 * poll() tells of space as soon as a terminal has any, and a newline may take more than its own byte, so a
 * write may wait although poll() told of space. The flags of `fd` are its owner's, who may share it with a
 * shell: O_NONBLOCK is another description's.
 */
int terminal_without_waiting(int fd);

#endif
