/*
 * The observer of a run's end: a process next to the command that looks into the guest's process when its
 * run has ended, and writes a core of the guest (--core).
 *
 * The guest's process cannot do that itself. Before the guest's first instruction it gives up the rights to
 * open files and to execute programs. So the observer is forked before that, with the rights that the
 * command was started with. It keeps stderr and a socket, and no other descriptor of the command: not the
 * console, whose reader waits for its end, and no disk, whose lock lives as long as its descriptors. It
 * waits. A run without --core has no observer.
 *
 * At the end of its run the guest's process writes one byte. OBSERVER_LOOK, OBSERVER_TIMEOUT: it stands
 * still until the observer answers or closes the socket, at most OBSERVER_WAIT_S. The observer becomes
 * Python's `tender core`, which attaches to that process from outside as `tender debug` does.
 * OBSERVER_NOTHING: there is nothing to see. No byte: the process was killed, and the guest's state with
 * it.
 *
 * A guest that has taken over its process can ask for a look at any time, once. It cannot choose what is
 * looked at, nor where the core goes: the observer has both from the command line.
 */
#define _GNU_SOURCE
#include "observer.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "launcher.h"

#ifndef PR_SET_PTRACER
#define PR_SET_PTRACER 0x59616d61
#endif

#define OBSERVER_SOCKET 3 /* its number in the observer */

static int socket_fd = -1; /* the command's end */
static pid_t observer;

/* ---- the observer */

/* `socket` becomes OBSERVER_SOCKET. The rest is closed except for stderr. */
static void close_the_rest(int socket)
{
    struct rlimit limit = {0};
    if (socket != OBSERVER_SOCKET)
        (void)dup2(socket, OBSERVER_SOCKET);
    (void)fcntl(OBSERVER_SOCKET, F_SETFD, 0);
    close(STDIN_FILENO);
    close(STDOUT_FILENO);
    if (syscall(SYS_close_range, OBSERVER_SOCKET + 1, ~0U, 0) == 0 || getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return;
    for (rlim_t fd = OBSERVER_SOCKET + 1; fd < limit.rlim_cur; fd++) /* before Linux 5.9 */
        close((int)fd);
}

/* A person at a terminal gets one, others if they ask for it: it costs a process for each run. */
static bool report_is_wanted(const struct request *request)
{
    if (request->solo5 || request->no_crash_report)
        return false;
    return request->crash_report || (!the_command.stderr_is_no_terminal && isatty(STDERR_FILENO));
}

static _Noreturn void look(const struct request *request, pid_t command, char word)
{
    char pid[16], most[16];
    (void)snprintf(pid, sizeof pid, "%d", (int)command);
    (void)snprintf(most, sizeof most, "%u", request->core_max);
    const char *const words[] = {"core",
                                 "--at-end",
                                 pid,
                                 the_command.program,
                                 request->core ? request->core : "",
                                 most,
                                 request->solo5 ? "solo5" : "tender",
                                 !report_is_wanted(request) ? ""
                                 : request->crash_report    ? "always"
                                                            : "auto",
                                 word == OBSERVER_TIMEOUT ? "timeout" : "",
                                 request->json ? "json" : "",
                                 NULL};
    execute_python((char **)(uintptr_t)words);
    if (request->core)
        say("--core: no core: Python cannot be executed: %s", strerror(errno));
    _exit(1);
}

static _Noreturn void observe(const struct request *request, pid_t command, int socket)
{
    char word;
    sigset_t all;
    sigfillset(&all); /* including a terminal's signals: the command obeys them, and the observer does not */
    (void)sigprocmask(SIG_SETMASK, &all, NULL);
    (void)prctl(PR_SET_NAME, "tender-observer");
    close_the_rest(socket);
    ssize_t got;
    do
        got = recv(OBSERVER_SOCKET, &word, 1, 0);
    while (got < 0 && errno == EINTR);
    if (got == 1 && (word == OBSERVER_LOOK || word == OBSERVER_TIMEOUT) && getppid() == command)
        look(request, command, word);
    if (got == 0 && request->core)
        say("--core: no core: the guest's process was killed, and the guest's state is gone with it");
    _exit(0);
}

/* ---- the command */

int observer_begin(const struct request *request)
{
    struct stat about;
    int ends[2];
    if (!request->core && !report_is_wanted(request))
        return 0;
    if (request->core && (stat(request->core, &about) < 0 || !S_ISDIR(about.st_mode) ||
                          access(request->core, W_OK | X_OK) < 0))
        leave_to_python("--core=%s: no core can be written there", shown(request->core));
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return -errno;
    const pid_t command = getpid(), pid = fork();
    const int error = errno;
    if (pid == 0)
        observe(request, command, ends[1]);
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return -error;
    }
    socket_fd = ends[0];
    observer = pid;
    /* Where yama lets a process be traced by its parents alone (kernel.yama.ptrace_scope = 1), it may be
     * traced by this one too. It stays so when this process executes another program. */
    (void)prctl(PR_SET_PTRACER, (unsigned long)pid, 0, 0, 0);
    return 0;
}

int observer_fd(void)
{
    return socket_fd;
}

pid_t observer_pid(void)
{
    return observer;
}

void observer_tell(char word)
{
    struct pollfd answer = {socket_fd, POLLIN, 0};
    struct timespec limit = {OBSERVER_WAIT_S, 0};
    if (socket_fd < 0)
        return;
    const bool asked = write(socket_fd, &word, 1) == 1;
    if (asked && word != OBSERVER_NOTHING)
        while (ppoll(&answer, 1, &limit, NULL) < 0 && errno == EINTR && !signal_caught())
            ;
    socket_fd = -1; /* it is closed at the end, which a filter allows to every process */
}
