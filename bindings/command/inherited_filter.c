/*
 * Works under a seccomp filter that was installed before exec and raises SIGSYS for the calls that it
 * refuses. urunc 0.5 to 0.7 installs one: it allows 43 calls, those that solo5-hvt makes.
 *
 * The handlers need two calls, which are replaced by allowed ones:
 *   ppoll      epoll: one set, made and closed each time. Signals are let in for the wait as in ppoll.
 *   eventfd2   a timer's descriptor; a write becomes a set timer (run.c)
 * Any other call fails with ENOSYS, and each place that makes one goes on without it: no lock on a disk, no
 * filter of our own where seccomp() itself is refused, signals that are not blocked. Only KVM's backend
 * works in this way: a sandbox needs clone().
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "launcher.h"

#ifndef SYS_SECCOMP
#define SYS_SECCOMP 1 /* siginfo.si_code, <asm-generic/siginfo.h> */
#endif

#define SA_RESTORER_FLAG 0x04000000u /* asm/signal.h; libc hides it */
#define WAIT_MAX         (MFT_MAX_ENTRIES + 1)

volatile sig_atomic_t under_inherited_filter;

_Static_assert(EPOLLIN == POLLIN && EPOLLOUT == POLLOUT && EPOLLERR == POLLERR && EPOLLHUP == POLLHUP,
               "both use the same bits");

static int timeout_ms(const struct timespec *limit)
{
    if (!limit)
        return -1;
    if (limit->tv_sec > INT32_MAX / 1000 - 1)
        return INT32_MAX;
    return (int)(limit->tv_sec * 1000 + (limit->tv_nsec + 999999) / 1000000);
}

static int64_t wait_by_epoll(struct pollfd *fds, uint64_t count, const struct timespec *limit,
                             const sigset_t *mask)
{
    struct epoll_event found[WAIT_MAX];
    int always = 0; /* regular files, which epoll does not accept, are always ready */
    if (count > WAIT_MAX)
        return -EINVAL;
    int set = epoll_create1(EPOLL_CLOEXEC);
    if (set < 0)
        return -errno;
    for (uint64_t i = 0; i < count; i++) {
        struct epoll_event want = {.events = (uint32_t)fds[i].events, .data.u64 = i};
        fds[i].revents = 0;
        if (epoll_ctl(set, EPOLL_CTL_ADD, fds[i].fd, &want) < 0) {
            fds[i].revents = errno == EPERM ? fds[i].events : POLLNVAL;
            always++;
        }
    }
    int ready = epoll_pwait(set, found, (int)count, always ? 0 : timeout_ms(limit), mask);
    int64_t answer = ready < 0 ? -errno : ready + always;
    for (int i = 0; i < ready; i++)
        fds[found[i].data.u64].revents = (short)found[i].events;
    close(set);
    return answer;
}

static int64_t replacement_for(int call, const greg_t *with)
{
    if (call == SYS_ppoll)
        return wait_by_epoll((struct pollfd *)with[REG_RDI], (uint64_t)with[REG_RSI],
                             (const struct timespec *)with[REG_RDX], (const sigset_t *)with[REG_R10]);
    if (call == SYS_eventfd2) {
        int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
        return fd < 0 ? -errno : fd;
    }
    return -ENOSYS;
}

static void on_refusal(int number, siginfo_t *about, void *context)
{
    (void)number;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    if (about->si_code != SYS_SECCOMP)
        return;
    under_inherited_filter = 1;
    registers[REG_RAX] = replacement_for(about->si_syscall, registers);
}

/* The kernel's struct sigaction. */
struct kernel_sigaction {
    void (*handler)(int, siginfo_t *, void *);
    uint64_t flags;
    void (*restorer)(void);
    uint64_t mask;
};

void inherited_filter_return(void);
__asm__(".text\n"
        ".type inherited_filter_return, @function\n"
        "inherited_filter_return:\n"
        "    mov $15, %eax\n" /* rt_sigreturn */
        "    syscall\n"
        ".size inherited_filter_return, . - inherited_filter_return\n");

/* It does not use the C library, which makes one more system call here (musl: rt_sigprocmask): until the
 * handler is installed, a refused call ends the process. */
void expect_inherited_filter(void)
{
    /* NODEFER: a call that the handler makes may be refused too. */
    const struct kernel_sigaction action = {.handler = on_refusal,
                                            .flags = SA_SIGINFO | SA_NODEFER | SA_RESTORER_FLAG,
                                            .restorer = inherited_filter_return};
    (void)syscall(SYS_rt_sigaction, SIGSYS, &action, NULL, sizeof action.mask);
}

/*
 * Before main() a static glibc asks where the program lies (readlink), for dlopen(), which nothing here
 * calls. Under such a filter that call would end the process, before there is a handler. This function
 * replaces the one that asks; its value means that the place is not known. Other C libraries do not call
 * it, and glibc from 2.42 on does not accept a replacement.
 */
#ifdef TENDER_OWN_ORIGIN
const char *_dl_get_origin(void); /* NOLINT: the C library's name */

const char *_dl_get_origin(void)
{
    return (const char *)-1;
}
#endif
