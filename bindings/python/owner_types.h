/* Python's structures for what it owns (owner.h). C fills and empties them. */
#ifndef TENDER_OWNER_TYPES_H
#define TENDER_OWNER_TYPES_H

#include "vm_types.h"

struct owned_vm;
struct owned_templates;

/* <native:types> */

/* An open descriptor, or -1. */
struct descriptor {
    int fd;
};

/* NULL: not made yet, or closed. */
struct vm_handle {
    struct owned_vm *owned;
};

struct image_handle {
    struct owned_templates *owned;
};

/* What is known about a run when tn_run() returns. The fields after `over` are set only if the run has
 * ended. */
struct run_report {
    struct vm_event event;
    uint32_t over; /* the event ends the run */
    uint32_t timed_out;
    uint32_t isolation; /* enum isolation_layer */
    struct vm_shared shared;
};

#define TEMPLATE_STEP_COPY    1
#define TEMPLATE_STEP_UNPATCH 2
#define TEMPLATE_STEP_TABLES  3
#define TEMPLATE_STEP_PATCH   4
#define TEMPLATE_STEP_SEAL    5

/* </native:types> */

#endif
