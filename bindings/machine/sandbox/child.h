/*
 * The sandbox process between its creation and its program: descriptors, an empty root, the death with its
 * parent. It shares the memory of the process that makes it (CLONE_VM), which may be running at the same
 * time. So all of this uses bare system calls: errno, too, belongs to the parent.
 */
#ifndef TENDER_SANDBOX_CHILD_H
#define TENDER_SANDBOX_CHILD_H

#include <signal.h>
#include <stdbool.h>
#include <sys/syscall.h>

#include "config.h"

#define CHILD_STACK_BYTES (64u << 10)
#define CHILD_FDS_MAX     (8 + MFT_MAX_ENTRIES)

struct fd_move {
    int from;
    int to;
};

/* What the child needs until it executes the program, and the result. */
struct spawn {
    const char *words[3];    /* the argv that a process list shows; the guest can read it */
    const char *const *argv; /* `words` or another argv, ended by NULL */
    int program_fd;
    uint32_t fd_count;
    struct fd_move fds[CHILD_FDS_MAX];
    sigset_t mask;            /* the program's signal mask */
    int death_signal;         /* sent to the child when the thread that made it ends */
    bool unprivileged;        /* its user is not root outside */
    uint32_t *user_is_shared; /* where the program finds whether other processes may have its user */
    /* The program's execution closes all other descriptors, and nothing before it does. */
    bool closes_on_exec;
    uint32_t isolation;
    uint32_t *layers; /* where the program reads `isolation`; NULL: nowhere */
    int error;        /* -errno, from parent or child */
    int pid;
    int pidfd;
};

/* Adds to the child's descriptors: this process's `from` becomes `to`. */
static inline void spawn_add_fd(struct spawn *spawn, int from, int to)
{
    spawn->fds[spawn->fd_count++] = (struct fd_move){from, to};
}

/* The ISOLATION_... bits of these CLONE_NEW... flags. */
uint32_t isolation_of(uint32_t namespaces);

/* An anonymous mapping as the stack of children; NULL if there is none. */
void *child_stack_new(void);

/* Executes the program. Returns only if that fails: -errno. */
long child_execute(struct spawn *spawn);

/* In the child: executes the program, or leaves -errno in `error` and ends. */
_Noreturn void child_become(struct spawn *spawn);

/* Makes a system call. Returns the kernel's answer, a value or -errno. */
static inline long bare_call(long number, long a, long b, long c, long d, long e)
{
    long answer;
    register long fourth __asm__("r10") = d;
    register long fifth __asm__("r8") = e;
    __asm__ volatile("syscall"
                     : "=a"(answer)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth)
                     : "rcx", "r11", "memory");
    return answer;
}

static inline _Noreturn void child_leave(int status)
{
    for (;;)
        (void)bare_call(SYS_exit_group, status, 0, 0, 0, 0);
}

#endif
