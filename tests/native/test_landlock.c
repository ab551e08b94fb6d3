/*
 * Compares core/landlock.h with the kernel's header, as far as the build machine has it, and with
 * the running kernel: a child denies itself everything that can be denied, and tries it. Prints one
 * TAP line for each check and exits with 1 if one fails. Needs no privileges. Without Landlock the
 * checks of behaviour are skipped.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "landlock.h"

_Static_assert(LANDLOCK_ASK_ABI == LANDLOCK_CREATE_RULESET_VERSION, "as the kernel has it");
_Static_assert(CALL_LANDLOCK_CREATE_RULESET == SYS_landlock_create_ruleset, "as the kernel has it");
_Static_assert(CALL_LANDLOCK_RESTRICT_SELF == SYS_landlock_restrict_self, "as the kernel has it");
_Static_assert(LANDLOCK_DENY_FS_1 == (LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1, "all of ABI 1");
#ifdef LANDLOCK_ACCESS_FS_REFER
_Static_assert(LANDLOCK_DENY_FS_2 == LANDLOCK_ACCESS_FS_REFER, "ABI 2");
#endif
#ifdef LANDLOCK_ACCESS_FS_TRUNCATE
_Static_assert(LANDLOCK_DENY_FS_3 == LANDLOCK_ACCESS_FS_TRUNCATE, "ABI 3");
#endif
#ifdef LANDLOCK_ACCESS_FS_IOCTL_DEV
_Static_assert(LANDLOCK_DENY_FS_5 == LANDLOCK_ACCESS_FS_IOCTL_DEV, "ABI 5");
#endif
#ifdef LANDLOCK_ACCESS_NET_CONNECT_TCP
_Static_assert(LANDLOCK_DENY_NET_4 == (LANDLOCK_ACCESS_NET_BIND_TCP | LANDLOCK_ACCESS_NET_CONNECT_TCP),
               "ABI 4");
#endif
#ifdef LANDLOCK_SCOPE_SIGNAL
_Static_assert(LANDLOCK_DENY_SCOPES == (LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | LANDLOCK_SCOPE_SIGNAL),
               "ABI 6");
#endif

#define DONE 42

static unsigned checks;
static unsigned failures;
static int abi;

static int deny(void)
{
    struct landlock_denial denial;
    uint64_t bytes = landlock_denial(abi, &denial);
    long fd = syscall(CALL_LANDLOCK_CREATE_RULESET, &denial, bytes, 0);
    if (fd < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -1;
    return (int)syscall(CALL_LANDLOCK_RESTRICT_SELF, fd, 0);
}

static void denied(int wanted_abi, bool (*attempt)(void), const char *claim)
{
    checks++;
    if (abi < wanted_abi) {
        printf("ok %u - %s # SKIP Landlock's ABI is %d\n", checks, claim, abi);
        return;
    }
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        /* Possible before deny(), and not after it. */
        _exit(!attempt() && deny() == 0 && attempt() ? DONE : 1);
    int status = -1;
    if (child < 0 || waitpid(child, &status, 0) != child)
        abort();
    bool holds = WIFEXITED(status) && WEXITSTATUS(status) == DONE;
    failures += !holds;
    printf("%s %u - %s # wait status 0x%x\n", holds ? "ok" : "not ok", checks, claim, (unsigned)status);
}

static bool refuses_to_read(void)
{
    int fd = open("/", O_RDONLY | O_DIRECTORY);
    if (fd >= 0)
        close(fd);
    return fd < 0 && errno == EACCES;
}

static bool refuses_to_make(void)
{
    char path[] = "/tmp/test_landlock.XXXXXX";
    int fd = mkstemp(path);
    if (fd >= 0)
        unlink(path);
    return fd < 0 && errno == EACCES;
}

static bool refuses_to_bind(void)
{
    struct sockaddr_in any = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    bool refused = bind(fd, (struct sockaddr *)&any, sizeof any) < 0 && errno == EACCES;
    close(fd);
    return refused;
}

static bool refuses_to_signal(void)
{
    return kill(getppid(), 0) < 0 && errno == EPERM;
}

static int listener = -1;
static struct sockaddr_un abstract = {.sun_family = AF_UNIX};

static bool refuses_an_abstract_socket(void)
{
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    bool refused = connect(fd, (struct sockaddr *)&abstract, sizeof abstract) < 0 && errno == EPERM;
    close(fd);
    return refused;
}

int main(void)
{
    abi = (int)syscall(CALL_LANDLOCK_CREATE_RULESET, NULL, 0, LANDLOCK_ASK_ABI);
    (void)snprintf(abstract.sun_path + 1, sizeof abstract.sun_path - 1, "tender-test-%d", (int)getpid());
    listener = socket(AF_UNIX, SOCK_DGRAM, 0);
    if (bind(listener, (struct sockaddr *)&abstract, sizeof abstract) < 0)
        abort();
    denied(1, refuses_to_read, "denied: to open a directory");
    denied(1, refuses_to_make, "denied: to make a file");
    denied(4, refuses_to_bind, "denied: to bind a TCP socket");
    denied(6, refuses_to_signal, "denied: a signal to a process outside");
    denied(6, refuses_an_abstract_socket, "denied: an abstract socket of a process outside");
    printf("1..%u\n", checks);
    return failures == 0 ? 0 : 1;
}
