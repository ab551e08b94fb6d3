/* See child.h. The child changes no memory of the parent except struct spawn. */
#define _GNU_SOURCE
#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#define MOVED_FD_BASE SANDBOX_FD_END
#define SIGSET_BYTES  8 /* the kernel's */
#define STACK_BYTES   (64u << 10)
#define CLOSE_ON_EXEC 4 /* linux/close_range.h of Linux 5.11 */

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

/* Returns the program's descriptor, or -errno. */
static long move_fds(const struct spawn *spawn)
{
    long moved[CHILD_FDS_MAX], done;
    long how = spawn->closes_on_exec ? CLOSE_ON_EXEC : 0;
    /* First move each descriptor away, so that none is overwritten before it has moved. The guest must
     * not get any other descriptor that this process has open, inherited or not. */
    for (uint32_t i = 0; i < spawn->fd_count; i++) {
        moved[i] = bare_call(SYS_fcntl, spawn->fds[i].from, F_DUPFD, MOVED_FD_BASE, 0, 0);
        if (moved[i] < 0)
            return moved[i];
    }
    long program = bare_call(SYS_fcntl, spawn->program_fd, F_DUPFD, MOVED_FD_BASE, 0, 0);
    if (program < 0)
        return program;
    done = bare_call(SYS_close_range, 0, MOVED_FD_BASE - 1, how, 0, 0);
    if (done == -EINVAL) { /* before Linux 5.11 */
        how = 0;
        done = bare_call(SYS_close_range, 0, MOVED_FD_BASE - 1, how, 0, 0);
    }
    for (uint32_t i = 0; i < spawn->fd_count && done >= 0; i++)
        done = bare_call(SYS_dup2, moved[i], spawn->fds[i].to, 0, 0, 0);
    if (done >= 0 && !how)
        done = bare_call(SYS_dup3, program, 1, O_CLOEXEC, 0, 0);
    if (done >= 0)
        done = bare_call(SYS_close_range, MOVED_FD_BASE, UINT32_MAX, how, 0, 0);
    return done < 0 ? done : how ? program : 1;
}

/* The guest can reach the process's own stack, and --mem does not count the pages that it touches there. A
 * lower limit stays. */
static long bound_stack(void)
{
    struct rlimit limit;
    long error = bare_call(SYS_prlimit64, 0, RLIMIT_STACK, 0, (long)&limit, 0);
    if (error < 0)
        return error;
    limit.rlim_max = limit.rlim_max < STACK_BYTES ? limit.rlim_max : STACK_BYTES;
    limit.rlim_cur = limit.rlim_max;
    return bare_call(SYS_prlimit64, 0, RLIMIT_STACK, (long)&limit, 0, 0);
}

/* Stops at the first capability that the kernel does not know, or that this process may not drop. In a new
 * user namespace a process has all of them. */
static void empty_bounding_set(void)
{
    for (long capability = 0; bare_call(SYS_prctl, PR_CAPBSET_DROP, capability, 0, 0, 0) == 0; capability++)
        ;
}

long child_execute(struct spawn *spawn)
{
    const char *const envp[] = {NULL};

    long error = bound_stack();
    if (error < 0)
        return error;
    const long program_fd = move_fds(spawn);
    if (program_fd < 0)
        return program_fd;
    /* The directory of this process's descriptors looks empty to every other process, and ends with it. */
    if (spawn->isolation & ISOLATION_MOUNT_NAMESPACE &&
        bare_call(SYS_chroot, (long)"/proc/self/fdinfo", 0, 0, 0, 0) == 0 &&
        bare_call(SYS_chdir, (long)"/", 0, 0, 0, 0) == 0)
        spawn->isolation |= ISOLATION_EMPTY_ROOT;
    if (spawn->unprivileged)
        spawn->isolation |= ISOLATION_UID;
    empty_bounding_set();
    error = bare_call(SYS_prctl, PR_SET_PDEATHSIG, spawn->death_signal, 0, 0, 0);
    if (error < 0)
        return error;
    (void)bare_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&spawn->mask, 0, SIGSET_BYTES, 0);
    if (spawn->layers)
        *spawn->layers = spawn->isolation;
    return bare_call(SYS_execveat, program_fd, (long)"", (long)spawn->argv, (long)envp, AT_EMPTY_PATH);
}

_Noreturn void child_become(struct spawn *spawn)
{
    spawn->error = (int)child_execute(spawn);
    child_leave(127);
}
