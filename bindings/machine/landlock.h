/*
 * Landlock, the kernel's isolation layer by which a process denies actions to itself (landlock(7), Linux
 * 5.13). It needs no namespace and no privilege, so it also works where a container's profile refuses user
 * namespaces.
 *
 * Everything that the running kernel can deny is denied, without exceptions. Descriptors that are already
 * open stay usable. A builder's <linux/landlock.h> may be older than the kernel that the program runs on,
 * so what is needed is declared here; tests/native/test_landlock.c compares it with the header.
 *
 * The callers make the system calls, because one of them has no libc:
 *
 *     abi = landlock_create_ruleset(NULL, 0, LANDLOCK_ASK_ABI)        below 1: the kernel has no Landlock
 *     fd = landlock_create_ruleset(&denial, landlock_denial(abi, &denial), 0)
 *     prctl(PR_SET_NO_NEW_PRIVS, 1), landlock_restrict_self(fd, 0), close(fd)
 */
#ifndef TENDER_LANDLOCK_H
#define TENDER_LANDLOCK_H

#include <stdint.h>

#define LANDLOCK_ASK_ABI 1u /* LANDLOCK_CREATE_RULESET_VERSION */

#define CALL_LANDLOCK_CREATE_RULESET 444 /* asm/unistd_64.h of Linux 5.13 */
#define CALL_LANDLOCK_RESTRICT_SELF  446

/* struct landlock_ruleset_attr of ABI 6 */
struct landlock_denial {
    uint64_t fs;     /* handled_access_fs: LANDLOCK_ACCESS_FS_... */
    uint64_t net;    /* handled_access_net, since ABI 4: TCP bind and connect */
    uint64_t scoped; /* since ABI 6: abstract Unix sockets and signals of processes outside */
};

#define LANDLOCK_DENY_FS_1   UINT64_C(0x1fff) /* EXECUTE .. MAKE_SYM */
#define LANDLOCK_DENY_FS_2   UINT64_C(0x2000) /* REFER */
#define LANDLOCK_DENY_FS_3   UINT64_C(0x4000) /* TRUNCATE */
#define LANDLOCK_DENY_FS_5   UINT64_C(0x8000) /* IOCTL_DEV */
#define LANDLOCK_DENY_NET_4  UINT64_C(0x3)    /* BIND_TCP, CONNECT_TCP */
#define LANDLOCK_DENY_SCOPES UINT64_C(0x3)    /* ABSTRACT_UNIX_SOCKET, SIGNAL */

/* Fills `denial` with everything that a kernel of version `abi` can deny. Returns the structure's size in
 * bytes for that kernel. `abi` must be at least 1. */
static inline uint64_t landlock_denial(int64_t abi, struct landlock_denial *denial)
{
    denial->fs = LANDLOCK_DENY_FS_1 | (abi >= 2 ? LANDLOCK_DENY_FS_2 : 0) |
                 (abi >= 3 ? LANDLOCK_DENY_FS_3 : 0) | (abi >= 5 ? LANDLOCK_DENY_FS_5 : 0);
    denial->net = abi >= 4 ? LANDLOCK_DENY_NET_4 : 0;
    denial->scoped = abi >= 6 ? LANDLOCK_DENY_SCOPES : 0;
    return abi >= 6 ? 24 : abi >= 4 ? 16 : 8;
}

_Static_assert(sizeof(struct landlock_denial) == 24, "as the kernel has it");

#endif
