/*
 * Another user for the processes that a thread of root's makes, so that a guest that breaks out of all else
 * is not root outside.
 *
 * Credentials are a thread's own to the kernel, and a child has those of the thread that makes it. What
 * changes here is therefore undone, or left, for the calling thread alone.
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
 * The calling thread, if it is root's, gets a user and a group that own nothing and no supplementary group,
 * and keeps its capabilities. True: its children are not root's. False: they are; this thread may not change
 * that, or could not end them afterwards (CAP_SETUID, CAP_SETGID and CAP_KILL are needed). NULL: it stays so
 * for good, and this may be called again.
 */
bool unprivileged_begin(struct unprivileged *saved);

/* As before unprivileged_begin(). */
void unprivileged_end(struct unprivileged *saved);

#endif
