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

/*
 * If the calling thread is root's, it gets a user and a group that own nothing and no supplementary
 * group, and keeps its capabilities. True: its children do not run as root. False: they do; this thread
 * may not change that, or could not end them afterwards (CAP_SETUID, CAP_SETGID and CAP_KILL are needed).
 * NULL: the change is permanent, and this may be called again.
 */
bool unprivileged_begin(struct unprivileged *saved);

/* Restores the state before unprivileged_begin(). */
void unprivileged_end(struct unprivileged *saved);

#endif
