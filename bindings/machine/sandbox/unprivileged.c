/* See unprivileged.h. Bare system calls: the C library's functions would change all threads. */
#define _GNU_SOURCE
#include "unprivileged.h"

#include <grp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "layers.h"

static struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};

static bool may(const struct unprivileged *saved, unsigned capability)
{
    return saved->capabilities[CAP_TO_INDEX(capability)].effective & CAP_TO_MASK(capability);
}

/* The saved user stays root until the child executes a program, which sets it to the effective one. Only a
 * saved root allows the way back if CAP_SETUID is not in the permitted set any more. */
static bool change_to(uint32_t id)
{
    return syscall(SYS_setresgid, id, id, id) == 0 && syscall(SYS_setresuid, id, id, 0) == 0;
}

static void give_back_capabilities(void)
{
    struct __user_cap_data_struct have[_LINUX_CAPABILITY_U32S_3];
    if (syscall(SYS_capget, &head, have) < 0)
        return;
    for (size_t i = 0; i < _LINUX_CAPABILITY_U32S_3; i++)
        have[i].effective = have[i].permitted; /* a change of the effective user has cleared them */
    (void)syscall(SYS_capset, &head, have);
}

static bool save_groups(struct unprivileged *saved)
{
    saved->group_count = getgroups(0, NULL);
    if (saved->group_count <= 0)
        return true;
    saved->groups = calloc((size_t)saved->group_count, sizeof *saved->groups);
    if (saved->groups && getgroups(saved->group_count, saved->groups) == saved->group_count)
        return true;
    free(saved->groups);
    saved->groups = NULL;
    return false;
}

enum unprivileged_user unprivileged_begin(struct unprivileged *saved)
{
    struct unprivileged forgotten;
    const bool for_good = !saved;
    if (for_good)
        saved = &forgotten;
    memset(saved, 0, sizeof *saved);
    if (getresuid(&saved->uid[0], &saved->uid[1], &saved->uid[2]) < 0 ||
        getresgid(&saved->gid[0], &saved->gid[1], &saved->gid[2]) < 0)
        return USER_ROOT;
    if (saved->uid[0] && saved->uid[1] && saved->uid[2])
        return saved->uid[1] == OVERFLOW_ID ? USER_SHARED : USER_OWN;
    if (syscall(SYS_capget, &head, saved->capabilities) < 0 || !may(saved, CAP_SETUID) ||
        !may(saved, CAP_SETGID) || !may(saved, CAP_KILL))
        return USER_ROOT;
    if (!for_good && !save_groups(saved))
        return USER_ROOT;
    const int dumpable = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
    saved->changed = true;
    enum unprivileged_user user = USER_ROOT;
    if (syscall(SYS_setgroups, 0, NULL) == 0)
        user = change_to(unprivileged_id(getpid())) ? USER_OWN
               : change_to(OVERFLOW_ID)             ? USER_SHARED
                                                    : USER_ROOT;
    if (user == USER_ROOT) {
        if (!for_good)
            unprivileged_end(saved);
        return USER_ROOT;
    }
    give_back_capabilities();
    if (dumpable == 1) /* a change of user clears it, for all processes that share the memory */
        (void)prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
    return user;
}

void unprivileged_end(struct unprivileged *saved)
{
    if (!saved->changed)
        return;
    const int dumpable = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
    give_back_capabilities();
    (void)syscall(SYS_setresuid, saved->uid[0], saved->uid[1], saved->uid[2]);
    give_back_capabilities();
    (void)syscall(SYS_setresgid, saved->gid[0], saved->gid[1], saved->gid[2]);
    (void)syscall(SYS_setgroups, saved->group_count > 0 ? saved->group_count : 0, saved->groups);
    (void)syscall(SYS_capset, &head, saved->capabilities);
    if (dumpable == 1)
        (void)prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
    free(saved->groups);
    saved->groups = NULL;
    saved->changed = false;
}
