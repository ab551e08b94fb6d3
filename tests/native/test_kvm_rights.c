/*
 * The command's filter on KVM, in the kernel: for each call a child makes it under the filter, and
 * ends well or by SIGSYS. The table below shows which writes go where. Prints one TAP line for each
 * check and exits with 1 if one fails.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "devices.h"
#include "holds.h"
#include "rights.h"

#define DISK    0x10000u
#define LARGE   0x40000u
#define RO_DISK 0x8000u

static struct vm vm;
static struct deferred_teardown teardown = {-1, -1, -1};
static struct confinement keeps = {.outputs = {{.fd = STDERR_FILENO}, {.fd = -1}}, .observer_fd = -1};
static int disk, large, read_only, log_file, net, stop, stray;
static uint8_t data[LARGE + 1];

static int file_of(uint64_t bytes)
{
    int fd = memfd_create("file", 0);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
        abort();
    return fd;
}

/* Returns the child's status, or 256 plus a signal's number. */
static int under_the_filter(const long call[7])
{
    pid_t child = fork();
    if (child == 0) {
        const struct rlimit no_core = {0, 0};
        (void)setrlimit(RLIMIT_CORE, &no_core);
        (void)give_up_rights();
        if (!give_up_calls(&teardown, &vm, &keeps))
            _exit(99);
        long answer = syscall(call[0], call[1], call[2], call[3], call[4], call[5], call[6]);
        _exit(answer < 0 ? 1 : 0);
    }
    int status = 0;
    if (waitpid(child, &status, 0) != child)
        abort();
    return WIFSIGNALED(status) ? 256 + WTERMSIG(status) : WEXITSTATUS(status);
}

#define KILLED       (256 + SIGSYS)
#define ALLOWED(...) HOLDS(under_the_filter((const long[7]){__VA_ARGS__}) == 0)
#define REFUSED(...) HOLDS(under_the_filter((const long[7]){__VA_ARGS__}) == KILLED)

static void attach(uint32_t handle, int fd, uint64_t capacity, bool is_read_only)
{
    vm.devices[handle] = disk_on(fd, (struct disk){.capacity = capacity, .read_only = is_read_only});
    vm.device_end = handle + 1;
}

static void test_a_disk_is_written_only_within_its_size(void)
{
    const long at = (long)data;
    const struct {
        int fd;
        long bytes;
    } disks[] = {{disk, DISK}, {large, LARGE}};
    for (int i = 0; i < 2; i++) {
        const int fd = disks[i].fd;
        const long bytes = disks[i].bytes;
        ALLOWED(SYS_pwrite64, fd, at, 512, 0);
        ALLOWED(SYS_pwrite64, fd, at, bytes, 0);
        ALLOWED(SYS_pwrite64, fd, at, 1, bytes - 1);
        ALLOWED(SYS_pwrite64, fd, at, 0, bytes);
        REFUSED(SYS_pwrite64, fd, at, 1, bytes);
        REFUSED(SYS_pwrite64, fd, at, 2, bytes - 1);
        REFUSED(SYS_pwrite64, fd, at, bytes + 1, 0);
        REFUSED(SYS_pwrite64, fd, at, 1, 1l << 32);
        REFUSED(SYS_pwrite64, fd, at, 1l << 32, 0);
        REFUSED(SYS_pwrite64, fd, at, 512, -1);
        REFUSED(SYS_pwrite64, fd, at, -1, 1);
    }
}

static void test_only_writable_disks_of_the_guest_are_written(void)
{
    static const long fds[] = {-1, 0, 1000};
    REFUSED(SYS_pwrite64, read_only, (long)data, 1, 0);
    REFUSED(SYS_pwrite64, log_file, (long)data, 1, 0);
    REFUSED(SYS_pwrite64, net, (long)data, 1, 0);
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        REFUSED(SYS_pwrite64, fds[i], (long)data, 1, 0);
}

static int opened_again(int fd)
{
    char path[32];
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int again = open(path, O_RDWR);
    if (again < 0)
        abort();
    return again;
}

/* A write at the descriptor's own offset could make a disk grow, or write a read-only disk. It is
 * refused for the guest's descriptor, for another descriptor of the same file (such as the one that
 * the caller passed), and for stdin. */
static void test_no_other_write_goes_to_a_disk(void)
{
    const struct iovec piece = {data, 1};
    const int again = opened_again(read_only), copy = dup(read_only), grown = opened_again(disk);
    const int stdin_before = dup(STDIN_FILENO);
    if (copy < 0 || stdin_before < 0 || dup2(again, STDIN_FILENO) < 0)
        abort();
    const int refused[] = {disk, large, read_only, again, copy, grown, STDIN_FILENO, stray, 1000, -1};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        REFUSED(SYS_write, refused[i], (long)data, 1);
        REFUSED(SYS_writev, refused[i], (long)&piece, 1);
        REFUSED(SYS_pwritev2, refused[i], (long)&piece, 1, -1, 0, RWF_NOWAIT);
    }
    (void)dup2(stdin_before, STDIN_FILENO);
    close(stdin_before);
    close(again);
    close(copy);
    close(grown);
    const uint64_t one = 1;
    ALLOWED(SYS_write, stop, (long)&one, sizeof one);
    ALLOWED(SYS_write, STDERR_FILENO, (long)data, 0);
    for (int i = 0; i < 2; i++) { /* stderr as a terminal that was opened again; the report */
        const int before = keeps.outputs[i].fd, fd = file_of(0);
        REFUSED(SYS_write, fd, (long)data, 1);
        keeps.outputs[i].fd = fd;
        ALLOWED(SYS_write, fd, (long)data, 1);
        keeps.outputs[i].fd = before;
        close(fd);
    }
    const int observer = file_of(0);
    REFUSED(SYS_write, observer, (long)data, 1);
    keeps.observer_fd = observer;
    ALLOWED(SYS_write, observer, (long)data, 1);
    keeps.observer_fd = -1;
    close(observer);
    ALLOWED(SYS_write, log_file, (long)data, 1);
    ALLOWED(SYS_writev, log_file, (long)&piece, 1);
    ALLOWED(SYS_write, net, (long)data, 1);
    ALLOWED(SYS_writev, net, (long)&piece, 1);
    REFUSED(SYS_pwritev2, log_file, (long)&piece, 1, 0, 0, RWF_NOWAIT);
}

/* With a worker of the ring, the descriptor that wakes it may be written. Without a worker that
 * number may belong to any file, so the write is refused. */
static void test_the_rings_worker_is_woken(void)
{
    const uint64_t one = 1;
    const int wake = eventfd(0, 0);
    if (wake < 0)
        abort();
    net_vm(&vm)->ring.wake_fd = wake;
    REFUSED(SYS_write, wake, (long)&one, sizeof one);
    net_vm(&vm)->ring.has_worker = true;
    ALLOWED(SYS_write, wake, (long)&one, sizeof one);
    net_vm(&vm)->ring.has_worker = false;
    close(wake);
}

static void test_arguments_of_the_others(void)
{
    static struct timespec now;
    static uint32_t word = 1;
    ALLOWED(SYS_clock_gettime, CLOCK_REALTIME, (long)&now);
    ALLOWED(SYS_clock_gettime, CLOCK_MONOTONIC, (long)&now);
    static const long clocks[] = {2, 3, 4, 5, 6, 7, 11, -1, -6, ~(1l << 3) | 2, 1l << 31};
    for (size_t i = 0; i < sizeof clocks / sizeof *clocks; i++)
        REFUSED(SYS_clock_gettime, clocks[i], (long)&now);
    static const int ops[] = {FUTEX_WAKE, FUTEX_WAKE_PRIVATE};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        ALLOWED(SYS_futex, (long)&word, ops[i], 1);
    for (int op = FUTEX_FD; op < 32; op++)
        for (int flags = 0; flags < 4; flags++) {
            const int all =
                op | (flags & 1 ? FUTEX_PRIVATE_FLAG : 0) | (flags & 2 ? FUTEX_CLOCK_REALTIME : 0);
            if (all != (FUTEX_WAIT_BITSET_PRIVATE | FUTEX_CLOCK_REALTIME))
                REFUSED(SYS_futex, (long)&word, all, 0);
        }
    REFUSED(SYS_mmap, 0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REFUSED(SYS_openat, AT_FDCWD, (long)"/", O_RDONLY);
}

static void test_without_a_disk_all_other_rules_stay(void)
{
    const uint32_t end = vm.device_end;
    const struct iovec piece = {data, 1};
    vm.device_end = 0;
    ALLOWED(SYS_write, log_file, (long)data, 1);
    REFUSED(SYS_pwrite64, disk, (long)data, 1, 0);
    vm.device_end = 1;
    ALLOWED(SYS_writev, net, (long)&piece, 1);
    ALLOWED(SYS_write, log_file, (long)data, 1);
    vm.device_end = end;
}

/* A guest with a network does not have the calls that disks need, and the reverse. With both it has
 * both. */
static void test_calls_of_a_kind_are_for_guests_that_have_it(void)
{
    static const struct {
        uint32_t type;
        long call[7];
    } calls[] = {
        {MFT_NET_BASIC, {SYS_sched_yield}},
        {MFT_NET_BASIC, {SYS_read, -1, (long)data, 1}},
        {MFT_NET_BASIC, {SYS_readv, -1, 0, 0}},
        {MFT_BLOCK_BASIC, {SYS_readahead, -1, 0, 1}},
        {MFT_BLOCK_BASIC, {SYS_fdatasync, -1}},
        {MFT_BLOCK_BASIC, {SYS_pread64, -1, (long)data, 1, 0}},
        {MFT_BLOCK_BASIC, {SYS_pwrite64, 0, (long)data, 0, 0}},
    };
    const struct vm before = vm;
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        long call[7];
        memcpy(call, calls[i].call, sizeof call);
        if (call[0] == SYS_pwrite64)
            call[1] = disk;
        for (uint32_t kinds = 1; kinds < 4; kinds++) {
            memset(vm.devices, 0, sizeof vm.devices);
            vm.device_end = 0;
            if (kinds & 2)
                attach(0, disk, DISK, false);
            if (kinds & 1)
                vm.devices[vm.device_end++] = net_on(net, (struct net_device){0});
            const bool has = kinds & (calls[i].type == MFT_NET_BASIC ? 1 : 2);
            HOLDS((under_the_filter(call) == KILLED) == !has);
        }
    }
    vm = before;
}

/* Every handle is a disk: the filter has its longest jumps. */
static void test_the_largest_number_of_disks(void)
{
    const struct vm before = vm;
    int fds[MFT_MAX_ENTRIES];
    for (uint32_t i = 0; i < MFT_MAX_ENTRIES; i++)
        attach(i, fds[i] = file_of(512 * (i + 1)), 512 * (i + 1), i % 2);
    for (uint32_t i = 0; i < MFT_MAX_ENTRIES; i += MFT_MAX_ENTRIES / 4 - 1) {
        HOLDS(under_the_filter((const long[7]){SYS_pwrite64, fds[i], (long)data, 512, 512 * i}) ==
              (i % 2 ? KILLED : 0));
        REFUSED(SYS_pwrite64, fds[i], (long)data, 512, 512 * i + 1);
        REFUSED(SYS_write, fds[i], (long)data, 1);
    }
    ALLOWED(SYS_write, log_file, (long)data, 1);
    for (uint32_t i = 0; i < MFT_MAX_ENTRIES; i++)
        close(fds[i]);
    vm = before;
}

enum file { NO_FILE = -1, ERRORS_FILE, REPORT_FILE };

static uint64_t limit_behind(int console, enum file which)
{
    int answer[2];
    uint64_t limit = 0;
    if (pipe(answer) < 0)
        abort();
    pid_t child = fork();
    if (child == 0) {
        struct rlimit now;
        vm.console.fd = console;
        if (which != NO_FILE)
            keeps.outputs[which].is_file = true;
        give_up_file_growth(&vm, &keeps);
        (void)getrlimit(RLIMIT_FSIZE, &now);
        _exit(now.rlim_max != now.rlim_cur || write(answer[1], &now.rlim_cur, sizeof now.rlim_cur) < 0);
    }
    int status = 0;
    HOLDS(waitpid(child, &status, 0) == child && status == 0);
    HOLDS(read(answer[0], &limit, sizeof limit) == sizeof limit);
    close(answer[0]);
    close(answer[1]);
    return limit;
}

static void test_no_file_grows_past_the_largest_disk(void)
{
    const int pipe_like = net;
    const uint64_t none = limit_behind(log_file, ERRORS_FILE);
    HOLDS(none > LARGE);
    HOLDS(limit_behind(pipe_like, NO_FILE) == LARGE);
    HOLDS(limit_behind(CONSOLE_DISCARD, NO_FILE) == LARGE);
    HOLDS(limit_behind(log_file, NO_FILE) == none && limit_behind(pipe_like, ERRORS_FILE) == none &&
          limit_behind(pipe_like, REPORT_FILE) == none);
    const uint32_t end = vm.device_end;
    vm.device_end = 0;
    HOLDS(limit_behind(pipe_like, NO_FILE) == 0);
    vm.device_end = end;
}

int main(void)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) < 0)
        return 1;
    net = pair[0];
    disk = file_of(DISK);
    large = file_of(LARGE);
    read_only = file_of(RO_DISK);
    log_file = file_of(0);
    stray = file_of(0);
    stop = eventfd(0, 0);
    if (stop < 0)
        return 1;
    vm.console.fd = log_file;
    vm.stop_fd = stop;
    vm.devices[0] = net_on(net, (struct net_device){0});
    attach(1, disk, DISK, false);
    attach(2, large, LARGE, false);
    attach(3, read_only, RO_DISK, true);
    test_a_disk_is_written_only_within_its_size();
    test_only_writable_disks_of_the_guest_are_written();
    test_no_other_write_goes_to_a_disk();
    test_the_rings_worker_is_woken();
    test_arguments_of_the_others();
    test_without_a_disk_all_other_rules_stay();
    test_calls_of_a_kind_are_for_guests_that_have_it();
    test_the_largest_number_of_disks();
    test_no_file_grows_past_the_largest_disk();
    return claims_end();
}
