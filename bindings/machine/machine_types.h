/* Why there is no machine, as plain data; Python reads it through cffi (bindings/python/native.h). */
#ifndef TENDER_MACHINE_TYPES_H
#define TENDER_MACHINE_TYPES_H

#include <stdint.h>

/* <native:types> */

struct machine_error {
    int32_t os_error;
    uint32_t step;      /* of a set-up by steps: what failed */
    uint32_t elsewhere; /* there is no such machine on this host, and another one may be had; 0: it is
                           something that no other would cure */
    char code[16];      /* HostError.code of the library; empty: its default */
    char text[512];
};

/* Steps of such a set-up beside those that its program tells of: the start of the process, and the memory
 * that is shared with it. */
#define SETUP_START  0
#define SETUP_SHARED 0xffffffff

/* </native:types> */

#endif
