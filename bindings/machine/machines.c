/* The table of machines, one row per machine, in the order in which "auto" tries them. */
#include "machine.h"

#include <string.h>

extern const struct machine_ops kvm_ops, sandbox_ops;

const struct machine_ops *const machines[] = {&kvm_ops, &sandbox_ops, NULL};

const struct machine_ops *machine_by_name(const char *name)
{
    for (const struct machine_ops *const *ops = machines; *ops; ops++)
        if (strcmp((*ops)->name, name) == 0)
            return *ops;
    return NULL;
}
