/*
 * The isolation layers that may stand around a guest's process. tender/config.py has their names, in the
 * order of the bits; `tender doctor` and --require know them by these.
 */
#ifndef TENDER_LAYERS_H
#define TENDER_LAYERS_H

#include <stdint.h>

enum isolation_layer {
    ISOLATION_USER_NAMESPACE = 1 << 0,
    ISOLATION_NETWORK_NAMESPACE = 1 << 1,
    ISOLATION_MOUNT_NAMESPACE = 1 << 2,
    ISOLATION_PID_NAMESPACE = 1 << 3,
    ISOLATION_IPC_NAMESPACE = 1 << 4,
    ISOLATION_EMPTY_ROOT = 1 << 5,
    ISOLATION_LANDLOCK = 1 << 6,
    ISOLATION_SECCOMP_FILTER = 1 << 7,
    ISOLATION_UID = 1 << 8,          /* its user is not root outside */
    ISOLATION_CAPABILITIES = 1 << 9, /* it has none, and can gain none */
    ISOLATION_KVM = 1 << 10,         /* the guest is a virtual machine */
};
#define ISOLATION_LAYERS 11 /* how many */

/*
 * A user that is no system's and no service's: above 16-bit numbers and what containers are given, below
 * 2^31. Each process has one of its own, by its number, so that what two monitors confine does not share one.
 * In a user namespace, where only few numbers exist, OVERFLOW_ID may be had.
 */
#define OVERFLOW_ID 65534u

static inline uint32_t unprivileged_id(int pid)
{
    return 0x70000000u | ((uint32_t)pid & 0x00ffffffu);
}

#endif
