/* The guest's console: the descriptor that it writes to, and the writes. */
#ifndef TENDER_CONSOLE_H
#define TENDER_CONSOLE_H

#include "vm.h"

/*
 * Sets the console's descriptor, or CONSOLE_DISCARD or CONSOLE_PYTHON. The caller keeps `fd` and
 * must leave it open as long as the VM exists. Returns 0 or -errno.
 */
int console_set(struct vm *vm, int fd);

/*
 * Writes the guest's bytes at `gpa`, whose host address is `data`. On EXIT, either the call must be
 * made again and continues from vm->resume, or the event contains a piece for the holder of the VM.
 */
enum verdict console_write(struct vm *vm, gpa_t gpa, const uint8_t *data, uint64_t len);

/*
 * Opens the terminal of `fd` again, so that a write to it never waits. Returns a descriptor that
 * the caller must close, or -1 if `fd` is not a terminal or the terminal cannot be opened.
 *
 * poll() reports space as soon as a terminal has any, but a newline may take more than one byte. So
 * a write may wait although poll() reported space. O_NONBLOCK on `fd` would prevent that, but its
 * flags belong to its owner, who may share them with a shell. So O_NONBLOCK is set on a description
 * of our own.
 */
int terminal_without_waiting(int fd);

#endif
