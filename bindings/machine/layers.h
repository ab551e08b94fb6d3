/*
 * The isolation layers that can surround a guest's process. tender/config.py lists their names in the
 * order of these bits; `tender doctor` and --require use those names.
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
    ISOLATION_CAPABILITIES = 1 << 9, /* it has no capabilities, and cannot gain any */
    ISOLATION_KVM = 1 << 10,         /* the guest is a virtual machine */
};
#define ISOLATION_LAYERS 11 /* the number of layers */

/*
 * A user id that belongs to no system account and no service. It lies above the 16-bit numbers and above what
 * containers are given, and below 2^31. Each process has an id of its own, derived from its process id, so
 * that two processes confined by different monitors do not share one. In a user namespace, which has only
 * few ids, OVERFLOW_ID may be available.
 */
#define OVERFLOW_ID 65534u

static inline uint32_t unprivileged_id(int pid)
{
    return 0x70000000u | ((uint32_t)pid & 0x00ffffffu);
}

#endif
