/*
 * For --net-reattach on KVM: a process next to the command that attaches a TAP's descriptor to the new
 * interface of its name.
 *
 * The command cannot do that itself. Before the guest's first instruction it gives up its user and its
 * capabilities, which it would need to open an interface. And TUNSETIFF names the interface in memory,
 * where no system-call filter can check it. So the helper is forked before that, with the rights that the
 * command was started with. It keeps copies of the TAPs' descriptors and no other descriptor of the
 * command.
 *
 * A request is one byte, a device's handle, which is all that the command can choose: the name is the one
 * that the interface had at the start. The helper answers with the result. It ends with the command,
 * because the command's end of the socket is then closed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "device.h"
#include "launcher.h"

struct answer {
    int32_t refused;
    uint32_t problem;
    int32_t os_error;
};

static struct {
    int socket_fd; /* the command's end */
    pid_t pid;     /* 0: there is no helper */
} helper;

/* ---- the helper */

static bool is_kept(const struct vm *devices, int fd, int socket_fd)
{
    bool kept = fd == socket_fd;
    for (uint32_t i = 0; i < devices->device_end; i++)
        kept = kept || (net_is_wanted_again(&devices->devices[i]) && devices->devices[i].fd == fd);
    return kept;
}

/* Other processes wait for the end of these descriptors, or for a lock that lives as long as they do. */
static void close_the_rest(const struct vm *devices, int socket_fd)
{
    struct rlimit limit = {0};
    int last = socket_fd;
    for (uint32_t i = 0; i < devices->device_end; i++)
        if (net_is_wanted_again(&devices->devices[i]) && devices->devices[i].fd > last)
            last = devices->devices[i].fd;
    for (int fd = 0; fd < last; fd++)
        if (!is_kept(devices, fd, socket_fd))
            close(fd);
    if (syscall(SYS_close_range, (unsigned)last + 1, ~0U, 0) == 0 || getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return;
    for (rlim_t fd = (rlim_t)last + 1; fd < limit.rlim_cur; fd++) /* before Linux 5.9 */
        close((int)fd);
}

static _Noreturn void serve(const struct vm *devices, int socket_fd)
{
    uint8_t handle;
    sigset_t all;
    sigfillset(&all); /* including a terminal's signals: the command obeys them, and the helper does not */
    (void)sigprocmask(SIG_SETMASK, &all, NULL);
    (void)prctl(PR_SET_NAME, "tender-net");
    close_the_rest(devices, socket_fd);
    while (recv(socket_fd, &handle, 1, 0) == 1) {
        struct device_error error = {.problem = DEVICE_OTHER, .os_error = EINVAL};
        struct answer answer = {.refused = -1};
        if (handle < devices->device_end && net_is_wanted_again(&devices->devices[handle]))
            answer.refused = net_attach_again(&devices->devices[handle], &error);
        answer.problem = error.problem;
        answer.os_error = error.os_error;
        if (send(socket_fd, &answer, sizeof answer, MSG_NOSIGNAL) != sizeof answer)
            break;
    }
    _exit(0);
}

/* ---- the command */

int net_helper_begin(const struct vm *devices)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return -errno;
    const pid_t pid = fork();
    const int error = errno;
    if (pid == 0)
        serve(devices, ends[1]);
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return -error;
    }
    helper.socket_fd = ends[0];
    helper.pid = pid;
    return 0;
}

/* Uses read() and write(), which the command's filter allows for a guest with devices. */
int net_helper_attach(const struct vm *devices, uint32_t handle, struct device_error *error)
{
    (void)devices;
    const uint8_t word = (uint8_t)handle;
    struct answer answer;
    ssize_t got = write(helper.socket_fd, &word, 1);
    while (got == 1 && (got = read(helper.socket_fd, &answer, sizeof answer)) < 0 && errno == EINTR)
        got = 1; /* the answer will come */
    error->problem = got == sizeof answer ? answer.problem : (uint32_t)DEVICE_OTHER;
    error->os_error = got == sizeof answer ? answer.os_error : EPIPE;
    return got == sizeof answer ? answer.refused : -1;
}

void net_helper_end(void)
{
    if (!helper.pid)
        return;
    close(helper.socket_fd);
    while (waitpid(helper.pid, NULL, 0) < 0 && errno == EINTR)
        ;
    helper.pid = 0;
}
