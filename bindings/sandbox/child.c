/* See child.h. Nothing of the parent's is changed but struct spawn. */
#define _GNU_SOURCE
#include "child.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#define MOVED_FD_BASE SANDBOX_FD_END
#define SIGSET_BYTES  8 /* the kernel's */

uint32_t isolation_of(uint32_t namespaces)
{
    return (namespaces & CLONE_NEWUSER ? (uint32_t)ISOLATION_USER_NAMESPACE : 0) |
           (namespaces & CLONE_NEWNET ? (uint32_t)ISOLATION_NETWORK_NAMESPACE : 0) |
           (namespaces & CLONE_NEWNS ? (uint32_t)ISOLATION_MOUNT_NAMESPACE : 0) |
           (namespaces & CLONE_NEWPID ? (uint32_t)ISOLATION_PID_NAMESPACE : 0) |
           (namespaces & CLONE_NEWIPC ? (uint32_t)ISOLATION_IPC_NAMESPACE : 0);
}

void *child_stack_new(void)
{
    void *stack =
        mmap(NULL, CHILD_STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    return stack == MAP_FAILED ? NULL : stack;
}

static long move_fds(const struct spawn *spawn)
{
    long moved[CHILD_FDS_MAX], done;
    /* Out of the way first, so that none is overwritten before it has moved; and whatever else this process
     * has open, inherited or not, is none of the guest's business. */
    for (uint32_t i = 0; i < spawn->fd_count; i++) {
        moved[i] = bare_call(SYS_fcntl, spawn->fds[i].from, F_DUPFD, MOVED_FD_BASE, 0, 0);
        if (moved[i] < 0)
            return moved[i];
    }
    long program = bare_call(SYS_fcntl, spawn->program_fd, F_DUPFD, MOVED_FD_BASE, 0, 0);
    if (program < 0)
        return program;
    done = bare_call(SYS_close_range, 0, MOVED_FD_BASE - 1, 0, 0, 0);
    for (uint32_t i = 0; i < spawn->fd_count && done >= 0; i++)
        done = bare_call(SYS_dup2, moved[i], spawn->fds[i].to, 0, 0, 0);
    if (done >= 0)
        done = bare_call(SYS_dup3, program, 1, O_CLOEXEC, 0, 0);
    if (done >= 0)
        done = bare_call(SYS_close_range, MOVED_FD_BASE, UINT32_MAX, 0, 0, 0);
    return done < 0 ? done : 0;
}

_Noreturn void child_become(struct spawn *spawn)
{
    const char *const argv[] = {"tender-sandbox", spawn->name, NULL};
    const char *const envp[] = {NULL};

    long error = move_fds(spawn);
    if (error < 0)
        goto fail;
    /* The directory of this process's descriptors is empty for everyone but itself, and gone with it. */
    if (spawn->isolation & ISOLATION_MOUNT_NAMESPACE &&
        bare_call(SYS_chroot, (long)"/proc/self/fdinfo", 0, 0, 0, 0) == 0 &&
        bare_call(SYS_chdir, (long)"/", 0, 0, 0, 0) == 0)
        spawn->isolation |= ISOLATION_EMPTY_ROOT;
    error = bare_call(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if (error < 0)
        goto fail;
    (void)bare_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&spawn->mask, 0, SIGSET_BYTES, 0);
    error = bare_call(SYS_execveat, 1, (long)"", (long)argv, (long)envp, AT_EMPTY_PATH);
fail:
    spawn->error = (int)error;
    child_leave(127);
}
