#define _GNU_SOURCE
#include "deferred_teardown.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* -1: there is no such file, or another user may open it and hold its locks. */
static int open_private(const char *path, uid_t user)
{
    struct stat about;
    int fd = open(path, O_RDONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, S_IRUSR | S_IWUSR);
    if (fd < 0)
        return -1;
    if (fstat(fd, &about) == 0 && S_ISREG(about.st_mode) && about.st_uid == user &&
        !(about.st_mode & (S_IRWXG | S_IRWXO)))
        return fd;
    close(fd);
    return -1;
}

static int open_places(void)
{
    char path[64];
    const uid_t user = geteuid();
    if (user)
        (void)snprintf(path, sizeof path, "/run/user/%u/tender-ends", user);
    int fd = open_private(user ? path : "/run/tender-ends", user);
    if (fd >= 0)
        return fd;
    (void)snprintf(path, sizeof path, "/dev/shm/tender-ends-%u", user);
    return open_private(path, user);
}

void deferred_teardown_prepare(struct deferred_teardown *teardown)
{
    int pair[2];
    *teardown = (struct deferred_teardown){-1, -1, open_places()};
    if (teardown->lock_fd >= 0 && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0) {
        teardown->ours = pair[0];
        teardown->looped = pair[1];
    }
}

/* The locks are read locks, because the descriptor must not be writable. Two processes can hold a read lock
 * on the same byte, so each process checks after locking that it is alone. If two arrive at the same time,
 * both go on to the next byte. */
static bool take_a_place(int lock_fd)
{
    for (int i = 0; i < DEFERRED_TEARDOWN_MAX; i++) {
        struct flock place = {
            .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = DEFERRED_TEARDOWN_FIRST_BYTE + i, .l_len = 1};
        if (fcntl(lock_fd, F_OFD_SETLK, &place) < 0)
            continue;
        struct flock others = place;
        others.l_type = F_WRLCK; /* conflicts with a lock of any other holder */
        if (fcntl(lock_fd, F_OFD_GETLK, &others) == 0 && others.l_type == F_UNLCK)
            return true;
        place.l_type = F_UNLCK;
        (void)fcntl(lock_fd, F_OFD_SETLK, &place);
    }
    return false;
}

void teardown_defer(const struct deferred_teardown *teardown, const struct kvm_machine *machine)
{
    if (teardown->ours < 0 || !take_a_place(teardown->lock_fd))
        return;
    /* Linux closes them in this order. Another order would only free the lock too early. */
    const int fds[] = {machine->vm_fd, machine->vcpu_fd, teardown->lock_fd, teardown->looped};
    union {
        struct cmsghdr head;
        uint8_t bytes[CMSG_SPACE(sizeof fds)];
    } control = {
        .head = {.cmsg_len = CMSG_LEN(sizeof fds), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    memcpy(CMSG_DATA(&control.head), fds, sizeof fds);
    char byte = 0;
    struct iovec piece = {.iov_base = &byte, .iov_len = sizeof byte};
    const struct msghdr message = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    (void)sendmsg(teardown->ours, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}
