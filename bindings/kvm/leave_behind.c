#define _GNU_SOURCE
#include "leave_behind.h"

#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>

void leave_behind_prepare(struct left_behind *left, int lock_fd)
{
    int pair[2] = {-1, -1};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        pair[0] = pair[1] = -1;
    *left = (struct left_behind){.ours = pair[0], .looped = pair[1], .lock_fd = lock_fd};
}

static bool take_a_place(int lock_fd)
{
    for (int i = 0; i < LEFT_BEHIND_MAX; i++) {
        struct flock place = {
            .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = LEFT_BEHIND_FIRST_BYTE + i, .l_len = 1};
        if (fcntl(lock_fd, F_OFD_SETLK, &place) == 0)
            return true;
    }
    return false;
}

void leave_behind(const struct left_behind *left, const struct machine *machine)
{
    if (left->ours < 0 || !take_a_place(left->lock_fd))
        return;
    /* Linux closes them in this order; in another one the place would be free too soon, no more. */
    const int fds[] = {machine->vm_fd, machine->vcpu_fd, left->lock_fd, left->looped};
    union {
        struct cmsghdr head;
        uint8_t room[CMSG_SPACE(sizeof fds)];
    } control = {
        .head = {.cmsg_len = CMSG_LEN(sizeof fds), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    memcpy(CMSG_DATA(&control.head), fds, sizeof fds);
    char byte = 0;
    struct iovec piece = {.iov_base = &byte, .iov_len = sizeof byte};
    const struct msghdr message = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    (void)sendmsg(left->ours, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}
