/*
 * A sandbox begun ahead: its process is there, and a helper makes its network namespace, which takes the
 * kernel longer than all the rest, while the image is read.
 *
 *   this process   begins | image, devices, template, config | go, waits | boot info | sandbox_run() ...
 *   the child               waits ...........................| namespaces, descriptors, exec | maps | joins
 *   the helper              the network namespace ................................................| ends
 *
 * For a process that has one thread, ends with it and makes one sandbox. A process of many shares one network
 * namespace among them (spawn.c). Here the program enters the helper's, which takes CAP_SYS_ADMIN in the user
 * namespace that child and helper have for themselves: the one capability that outlives the child's exec,
 * until the program gives up its rights.
 *
 * Child and helper have this process's memory, and until the child executes the program its descriptors: bare
 * system calls, stacks of their own, and words to wait for.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ahead.h"
#include "unprivileged.h"

#define HELPER_STACK_BYTES (16u << 10) /* the low end of the child's */

static struct ahead {
    uint32_t namespaces; /* CLONE_NEW..., the network's apart */
    uint8_t *stack;
    int pid; /* the child's; 0: nothing is begun, or it is finished */
    int pidfd;
    int helper_pidfd;  /* -1: there is none */
    bool unprivileged; /* both are */
    int told[2];    /* a pipe. Who is woken by it runs where its waker does, which then waits itself, and not
                       behind the helper on the processor where it fell asleep: so no futex */
    int self_pidfd; /* this process's */
    int error;      /* of the child: what it was begun for cannot be had */
    _Atomic int go; /* 1: `spawn` and `network` are filled */
    _Atomic int executed; /* 0: the child has executed the program, or has ended: CLONE_CHILD_CLEARTID */
    struct spawn *spawn;
    _Atomic uint32_t *network; /* sandbox_config's */
} ahead = {.helper_pidfd = -1, .self_pidfd = -1};

/*
 * The kernel kills who has asked here when the process above ends; if it is ending already, this one ends by
 * itself. A process that ends looks first which of its children have asked, and is seen to have ended a
 * moment later, all behind one lock: to wait for a child, though there is none, takes it too, so that there
 * is no moment between the two.
 */
static long end_with_parent(void)
{
    struct pollfd parent = {ahead.self_pidfd, POLLIN, 0};
    const struct timespec at_once = {0, 0};
    long error = bare_call(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    (void)bare_call(SYS_wait4, -1, 0, WNOHANG, 0, 0);
    if (error >= 0 && bare_call(SYS_ppoll, (long)&parent, 1, (long)&at_once, 0, 0) != 0)
        child_leave(127);
    return error;
}

/* ---- the helper */

static void drop_capabilities(void)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    const struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {{0, 0, 0}};
    (void)bare_call(SYS_capset, (long)&head, (long)none, 0, 0, 0);
}

static int helper_main(void *unused)
{
    (void)unused;
    long error = 0;
    if (ahead.namespaces & CLONE_NEWUSER)
        error = bare_call(SYS_setns, ahead.pidfd, CLONE_NEWUSER, 0, 0, 0);
    /* Not before: the kernel forgets it of who gains capabilities, as in a user namespace. But in any case.
     */
    const long no_end = end_with_parent();
    if (error >= 0)
        error = no_end;
    if (error >= 0)
        error = bare_call(SYS_unshare, CLONE_NEWNET, 0, 0, 0, 0);
    drop_capabilities(); /* also because who has fewer of them may not enter its namespace */
    while (!atomic_load(&ahead.go))
        (void)bare_call(SYS_futex, (long)&ahead.go, FUTEX_WAIT, 0, 0, 0);
    const uint32_t made = error < 0 ? SANDBOX_NETWORK_REFUSED : SANDBOX_NETWORK_MADE;
    atomic_store(ahead.network, made);
    (void)bare_call(SYS_futex, (long)ahead.network, FUTEX_WAKE, INT32_MAX, 0, 0);
    while (atomic_load(ahead.network) == made)
        (void)bare_call(SYS_futex, (long)ahead.network, FUTEX_WAIT, (long)made, 0, 0);
    return 0;
}

/* ---- the child */

static long keep_one_capability(void)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct have[_LINUX_CAPABILITY_U32S_3];
    long error = bare_call(SYS_capget, (long)&head, (long)have, 0, 0, 0);
    if (error < 0)
        return error;
    have[CAP_TO_INDEX(CAP_SYS_ADMIN)].inheritable |= CAP_TO_MASK(CAP_SYS_ADMIN);
    error = bare_call(SYS_capset, (long)&head, (long)have, 0, 0, 0);
    return error < 0 ? error
                     : bare_call(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SYS_ADMIN, 0, 0);
}

static int child_main(void *unused)
{
    char go;
    (void)unused;
    long error = end_with_parent();
    while (error >= 0 && bare_call(SYS_read, ahead.told[0], (long)&go, 1, 0, 0) != 1)
        ;
    if (error >= 0)
        error = bare_call(
            SYS_unshare, (long)(CLONE_FILES | (ahead.namespaces & (CLONE_NEWNS | CLONE_NEWIPC))), 0, 0, 0, 0);
    if (error >= 0)
        error = keep_one_capability();
    if (error < 0) {
        ahead.error = (int)error;
        child_leave(127);
    }
    child_become(ahead.spawn);
}

/* ---- this process */

static void kill_and_wait_for(int *pidfd)
{
    siginfo_t ignored;
    (void)syscall(SYS_pidfd_send_signal, *pidfd, SIGKILL, NULL, 0);
    while (waitid(P_PIDFD, (id_t)*pidfd, &ignored, WEXITED | __WALL) < 0 && errno == EINTR)
        ;
    close(*pidfd);
    *pidfd = -1;
}

void sandbox_ahead_begin(void)
{
    static const uint32_t tried[] = {CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC,
                                     CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC};
    const int flags = CLONE_VM | CLONE_FILES | CLONE_PIDFD | SIGCHLD;
    sigset_t all, saved;
    ahead.stack = child_stack_new();
    ahead.self_pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    if (!ahead.stack || ahead.self_pidfd < 0 || pipe2(ahead.told, O_CLOEXEC) < 0)
        return;
    sigfillset(&all);
    (void)sigprocmask(SIG_SETMASK, &all, &saved); /* no handler of ours may run in a child that is us */
    struct unprivileged before;
    ahead.unprivileged = unprivileged_begin(&before);
    for (size_t i = 0; i < sizeof tried / sizeof *tried && !ahead.pid; i++) {
        ahead.namespaces = tried[i];
        atomic_store(&ahead.executed, 1);
        int pid = clone(child_main, ahead.stack + CHILD_STACK_BYTES,
                        flags | CLONE_CHILD_CLEARTID | (int)(tried[i] & (CLONE_NEWUSER | CLONE_NEWPID)), NULL,
                        &ahead.pidfd, NULL, &ahead.executed);
        ahead.pid = pid > 0 ? pid : 0;
    }
    if (ahead.pid &&
        clone(helper_main, ahead.stack + HELPER_STACK_BYTES, flags, NULL, &ahead.helper_pidfd) < 0) {
        ahead.helper_pidfd = -1;
        sandbox_ahead_end();
    }
    unprivileged_end(&before);
    (void)sigprocmask(SIG_SETMASK, &saved, NULL);
}

enum ahead_end sandbox_ahead_finish(struct spawn *spawn, struct sandbox_config *config)
{
    if (!ahead.pid)
        return AHEAD_NOTHING;
    spawn_add_fd(spawn, ahead.helper_pidfd, SANDBOX_FD_NETWORK);
    spawn->isolation = isolation_of(ahead.namespaces); /* of the network's the program tells */
    spawn->unprivileged = ahead.unprivileged;
    atomic_store(&config->network, SANDBOX_NETWORK_COMES);
    ahead.spawn = spawn;
    ahead.network = &config->network;
    atomic_store(&ahead.go, 1);
    (void)bare_call(SYS_futex, (long)&ahead.go, FUTEX_WAKE, INT32_MAX, 0, 0);
    (void)!write(ahead.told[1], "", 1);
    while (atomic_load(&ahead.executed))
        (void)bare_call(SYS_futex, (long)&ahead.executed, FUTEX_WAIT, 1, 0, 0);
    close(ahead.told[0]);
    close(ahead.told[1]);
    if (ahead.error || spawn->error < 0) {
        sandbox_ahead_end();
        atomic_store(&config->network, SANDBOX_NETWORK_GIVEN);
        spawn->fd_count--;
        return ahead.error ? AHEAD_NOTHING : AHEAD_FAILED;
    }
    spawn->pid = ahead.pid;
    spawn->pidfd = ahead.pidfd;
    ahead.pid = 0;
    return AHEAD_DONE;
}

void sandbox_ahead_end(void)
{
    if (ahead.pid)
        kill_and_wait_for(&ahead.pidfd);
    ahead.pid = 0;
    if (ahead.helper_pidfd >= 0)
        kill_and_wait_for(&ahead.helper_pidfd);
    /* Not sooner: the helper may be late, and would look at what has its number by then. */
    if (ahead.self_pidfd >= 0)
        close(ahead.self_pidfd);
    ahead.self_pidfd = -1;
}
