/* Which descriptor the guest's console goes to. */
#ifndef TENDER_CONSOLE_H
#define TENDER_CONSOLE_H

#include "vm.h"

/* `fd` stays the caller's and open as long as the VM; or CONSOLE_DISCARD, CONSOLE_PYTHON. 0 or -errno. */
int console_set(struct vm *vm, int fd);

#endif
