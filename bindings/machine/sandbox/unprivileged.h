/*
 * Another user for the processes that a thread of root makes, so that a guest that breaks out of all other
 * layers is not root outside.
 *
 * For the kernel, credentials belong to a thread, and a child gets those of the thread that makes it. So the
 * change made here applies to the calling thread only, and is undone or kept for that thread only.
 */
#ifndef TENDER_SANDBOX_UNPRIVILEGED_H
#define TENDER_SANDBOX_UNPRIVILEGED_H

#include <linux/capability.h>
#include <stdbool.h>
#include <sys/types.h>

struct unprivileged {
    bool changed;
    uid_t uid[3];
    gid_t gid[3];
    int group_count;
    gid_t *groups;
    struct __user_cap_data_struct capabilities[_LINUX_CAPABILITY_U32S_3];
};

/* As whom the children of a thread run. */
enum unprivileged_user {
    USER_ROOT = 0,
    USER_OWN = 1,    /* the user of this process, or one that no other process has */
    USER_SHARED = 2, /* OVERFLOW_ID, which other processes may have too */
};

/*
 * If the calling thread is root's, it gets a user and a group that own nothing and no supplementary group,
 * and keeps its capabilities. USER_ROOT: this thread may not change that, or could not end its children
 * afterwards (CAP_SETUID, CAP_SETGID and CAP_KILL are needed). NULL: the change is permanent, and this may be
 * called again.
 */
enum unprivileged_user unprivileged_begin(struct unprivileged *saved);

/* Restores the state before unprivileged_begin(). */
void unprivileged_end(struct unprivileged *saved);

#endif
