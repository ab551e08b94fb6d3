/*
 * Under a system-call filter that somebody else has put around us before exec, with SIGSYS for what it
 * refuses. urunc 0.5 to 0.7 does so: 43 calls are allowed, those that solo5-hvt makes.
 *
 * Two calls that the handlers cannot do without are done by allowed ones:
 *   ppoll      epoll: one set, made and closed each time. Signals come in for the wait as they do in ppoll.
 *   eventfd2   a timer's descriptor; who would write to it sets it (run.c)
 * Any other fails with ENOSYS, and each place that makes one goes on without: no lock on a disk, no filter of
 * our own where seccomp() itself is refused, signals that are not held back. Only KVM's backend works so: a
 * sandbox wants clone().
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
               "one set of bits");

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
    int always = 0; /* regular files, which epoll does not take, are */
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

static int64_t otherwise(int call, const greg_t *with)
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
    registers[REG_RAX] = otherwise(about->si_syscall, registers);
}

/* struct sigaction as the kernel has it. */
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

/* Without the C library, which makes a call more on this way (musl: rt_sigprocmask): until the handler
 * stands, one that is refused is the end. */
void expect_inherited_filter(void)
{
    /* NODEFER: what the handler calls may be refused too. */
    const struct kernel_sigaction action = {.handler = on_refusal,
                                            .flags = SA_SIGINFO | SA_NODEFER | SA_RESTORER_FLAG,
                                            .restorer = inherited_filter_return};
    (void)syscall(SYS_rt_sigaction, SIGSYS, &action, NULL, sizeof action.mask);
}

/*
 * Before main() a static glibc asks where the program lies (readlink), for the sake of dlopen(), which
 * nothing here calls: under such a filter that would be the end, with nobody to hear of it yet. This stands
 * in for the function that asks; the value means that it is not known. In another C library nobody calls it,
 * and glibc from 2.42 on takes no other than its own.
 */
#ifdef TENDER_OWN_ORIGIN
const char *_dl_get_origin(void); /* NOLINT: the C library's name */

const char *_dl_get_origin(void)
{
    return (const char *)-1;
}
#endif
