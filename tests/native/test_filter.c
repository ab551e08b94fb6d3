/*
 * The sandbox's filter in the kernel: a child installs it and makes one call, and the child's end
 * shows the kernel's verdict. tests/unit/test_filter.py goes through all calls. The calls here show
 * that the kernel understands the filter in the way that its rules intend. Prints one TAP line for
 * each check and exits with 1 if one fails. Needs no KVM and no privileges.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <asm/prctl.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../bindings/machine/sandbox/fds.h"
#include "filter.h"

#define NET             (SANDBOX_FDS_net + 3)
#define NET_SOCKET      (SANDBOX_FDS_net + 63)
#define BLOCK           (SANDBOX_FDS_block + 63)
#define GUEST           0x40000000u /* where the guest's code is */
#define SI_CODE_SECCOMP 1           /* SYS_SECCOMP of asm-generic/siginfo.h, which clashes with signal.h */
#define DONE            42          /* the status of a child that came as far as it should */

static unsigned checks;
static unsigned failures;

static void check(bool holds, const char *claim, int status)
{
    checks++;
    failures += !holds;
    printf("%s %u - %s", holds ? "ok" : "not ok", checks, claim);
    printf(holds ? "\n" : " # wait status 0x%x\n", (unsigned)status);
}

/* long site(long number, long a, long b, long c, long d, long e, long f): the program's only
 * `syscall` instruction. */
long site(long number, long a, long b, long c, long d, long e, long f);
extern const char site_return[];
__asm__(".text\n"
        ".globl site, site_return\n"
        ".type site, @function\n"
        "site:\n"
        "    mov %rdi, %rax\n"
        "    mov %rsi, %rdi\n"
        "    mov %rdx, %rsi\n"
        "    mov %rcx, %rdx\n"
        "    mov %r8, %r10\n"
        "    mov %r9, %r8\n"
        "    mov 8(%rsp), %r9\n"
        "    syscall\n"
        "site_return:\n"
        "    ret\n"
        ".size site, . - site\n");

#define SITE(number, ...) SITE_(number, __VA_ARGS__, 0, 0, 0, 0, 0, 0)
#define SITE_(number, a, b, c, d, e, f, ...)                                                                 \
    site(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

static char byte = 'x';

static bool lock(void)
{
    static struct sock_filter code[FILTER_LENGTH];
    struct sock_fprog program = {FILTER_LENGTH, code};
    filter_build(code, (uint64_t)(uintptr_t)site_return);
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0;
}

/* Returns the wait status of a child that installs the filter, makes the call, and exits with its
 * result by site(). */
static int status_of(int (*call)(void))
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        const struct rlimit no_core = {0, 0};
        setrlimit(RLIMIT_CORE, &no_core);
        if (!lock())
            _exit(1);
        SITE(SYS_exit_group, call());
    }
    int status = -1;
    if (child < 0 || waitpid(child, &status, 0) != child)
        abort();
    return status;
}

static void works(int (*call)(void), const char *claim)
{
    int status = status_of(call);
    check(WIFEXITED(status) && WEXITSTATUS(status) == DONE, claim, status);
}

static void dies(int (*call)(void), const char *claim)
{
    int status = status_of(call);
    check(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS, claim, status);
}

/* The same for calls that a kernel may be built without: there they raise a fault. */
static void dies_or_faults(int (*call)(void), const char *claim)
{
    int status = status_of(call);
    check(WIFSIGNALED(status) && (WTERMSIG(status) == SIGSYS || WTERMSIG(status) == SIGSEGV), claim, status);
}

static int done_if(bool holds)
{
    return holds ? DONE : 1;
}

static int ends(void)
{
    return DONE;
}

static int nets(void)
{
    struct iovec piece = {&byte, 1};
    return done_if(SITE(SYS_writev, NET, &piece, 1) == 1 && SITE(SYS_readv, NET, &piece, 1) == 1 &&
                   SITE(SYS_write, NET, &byte, 1) == 1 && SITE(SYS_read, NET, &byte, 1) == 1 &&
                   SITE(SYS_sendto, NET_SOCKET, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0) == 1);
}

static int blocks(void)
{
    return done_if(SITE(SYS_pwrite64, BLOCK, &byte, 1, 4096) == 1 &&
                   SITE(SYS_pread64, BLOCK, &byte, 1, 4096) == 1 && SITE(SYS_fdatasync, BLOCK) == 0 &&
                   SITE(SYS_readahead, BLOCK, 0, 4096) == 0);
}

static int console(void)
{
    struct iovec piece = {&byte, 1};
    struct pollfd wait = {SANDBOX_FD_CONSOLE, POLLOUT, 0};
    return done_if(SITE(SYS_ppoll, &wait, 1, 0, 0, 8) == 1 &&
                   SITE(SYS_write, SANDBOX_FD_CONSOLE, &byte, 1) == 1 &&
                   SITE(SYS_pwritev2, SANDBOX_FD_CONSOLE, &piece, 1, -1, -1, RWF_NOWAIT) == 1 &&
                   SITE(SYS_sendto, SANDBOX_FD_CONSOLE, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0) == 1);
}

static int control(void)
{
    return done_if(SITE(SYS_write, SANDBOX_FD_CONTROL, &byte, 1) == 1 &&
                   SITE(SYS_read, SANDBOX_FD_CONTROL, &byte, 1) == 1);
}

static int segment_bases(void)
{
    uint64_t fs = 0, again = 0;
    return done_if(SITE(SYS_arch_prctl, ARCH_GET_FS, &fs) == 0 &&
                   SITE(SYS_arch_prctl, ARCH_SET_FS, fs) == 0 &&
                   SITE(SYS_arch_prctl, ARCH_GET_FS, &again) == 0 && fs == again && fs != 0);
}

static int vdso_clock(void)
{
    struct timespec now = {0, 0};
    return done_if(clock_gettime(CLOCK_MONOTONIC, &now) == 0 && now.tv_sec + now.tv_nsec > 0);
}

static int clock_by_a_call_from_elsewhere(void)
{
    struct timespec now = {0, 0};
    return done_if(syscall(SYS_clock_gettime, CLOCK_REALTIME, &now) == 0);
}

static int clock_of_another_process(void)
{
    struct timespec now = {0, 0};
    return (int)syscall(SYS_clock_gettime, (clockid_t)(~(unsigned)getppid() << 3 | 2), &now);
}

static int clock_of_another_process_at_the_site(void)
{
    struct timespec now = {0, 0};
    return (int)SITE(SYS_clock_gettime, ~1u << 3 | 2, &now);
}

static int write_over_what_is_appended_to(void)
{
    struct iovec piece = {&byte, 1};
    return (int)SITE(SYS_pwritev2, SANDBOX_FD_CONSOLE, &piece, 1, -1, 0,
                     RWF_NOWAIT | 0x20); /* RWF_NOAPPEND */
}

static int send_out_of_band(void)
{
    return (int)SITE(SYS_sendto, SANDBOX_FD_CONSOLE, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL | MSG_OOB, 0, 0);
}

static int getpid_at_the_site(void)
{
    return (int)SITE(SYS_getpid, 0);
}
static int open_at_the_site(void)
{
    return (int)SITE(SYS_open, "/", O_RDONLY);
}
static int exec_at_the_site(void)
{
    return (int)SITE(SYS_execve, "/bin/true", 0, 0);
}
static int map_at_the_site(void)
{
    return (int)SITE(SYS_mmap, 0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}
static int clone_at_the_site(void)
{
    return (int)SITE(SYS_clone, SIGCHLD);
}
static int x32_write(void)
{
    return (int)SITE(SYS_write | 0x40000000, NET, &byte, 1);
}
static int read_of_the_stop(void)
{
    return (int)SITE(SYS_read, SANDBOX_FD_STOP, &byte, 1);
}
static int read_of_the_console(void)
{
    return (int)SITE(SYS_read, SANDBOX_FD_CONSOLE, &byte, 1);
}
static int read_of_a_block(void)
{
    return (int)SITE(SYS_read, BLOCK, &byte, 1);
}
static int pread_past_the_blocks(void)
{
    return (int)SITE(SYS_pread64, BLOCK + 1, &byte, 1, 0);
}
static int readv_past_the_nets(void)
{
    struct iovec piece = {&byte, 1};
    return (int)SITE(SYS_readv, BLOCK, &piece, 1);
}

static int writev_to_the_console(void)
{
    struct iovec piece = {&byte, 1};
    return (int)SITE(SYS_writev, SANDBOX_FD_CONSOLE, &piece, 1);
}

static int flush_past_the_blocks(void)
{
    return (int)SITE(SYS_fdatasync, BLOCK + 1);
}
static int flush_of_the_console(void)
{
    return (int)SITE(SYS_fdatasync, SANDBOX_FD_CONSOLE);
}
static int readahead_past_the_blocks(void)
{
    return (int)SITE(SYS_readahead, BLOCK + 1, 0, 4096);
}
static int other_prctl_code(void)
{
    return (int)SITE(SYS_arch_prctl, 0x1012, 0);
}

static int send_to_an_address(void)
{
    const struct sockaddr nobody = {.sa_family = AF_UNIX};
    return (int)SITE(SYS_sendto, NET_SOCKET, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL, &nobody, sizeof nobody);
}

static int write_at_a_place(void)
{
    struct iovec piece = {&byte, 1};
    return done_if(SITE(SYS_pwritev2, SANDBOX_FD_CONSOLE, &piece, 1, 0xffffffff, 0, RWF_NOWAIT) == 1);
}

static int write_from_elsewhere(void)
{
    return (int)syscall(SYS_write, NET, &byte, 1);
}

static int write_by_the_old_convention(void)
{
    int result = 4; /* write, in that convention */
    __asm__ volatile("int $0x80"
                     : "+a"(result)
                     : "b"(NET), "c"(0), "d"(0)
                     : "memory", "r8", "r9", "r10", "r11");
    return result;
}

/* getcpu at 0xffffffffff600800: the kernel emulates it, and asks the filter before that. */
static int vsyscall(void)
{
    unsigned cpu;
    long (*getcpu)(unsigned *, void *, void *) = (long (*)(unsigned *, void *, void *))0xffffffffff600800;
    return (int)getcpu(&cpu, NULL, NULL);
}

/* ---- the guest's own calls ---- */

static uint32_t wanted_arch;
static int wanted_number;

static void on_trap(int signal, siginfo_t *info, void *context)
{
    (void)context;
    bool named = signal == SIGSYS && info->si_code == SI_CODE_SECCOMP && info->si_arch == wanted_arch &&
                 info->si_syscall == wanted_number && (uintptr_t)info->si_call_addr == GUEST + 2;
    SITE(SYS_exit_group, done_if(named));
}

static int run_guest(const char *code, size_t bytes, uint32_t arch, int number)
{
    const struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
    void *guest = mmap((void *)(uintptr_t)GUEST, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (guest != (void *)(uintptr_t)GUEST || sigaction(SIGSYS, &action, NULL) < 0)
        return -1;
    memcpy(guest, code, bytes);
    wanted_arch = arch;
    wanted_number = number;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (!lock())
            _exit(1);
        long result = number;
        __asm__ volatile("call *%1"
                         : "+a"(result)
                         : "r"(guest)
                         : "memory", "rcx", "r11", "rdi", "rsi", "rdx", "r8", "r9", "r10");
        SITE(SYS_exit_group, 1);
    }
    int status = -1;
    if (child < 0 || waitpid(child, &status, 0) != child)
        abort();
    munmap(guest, 4096);
    signal(SIGSYS, SIG_DFL);
    return status;
}

static void test_guest(void)
{
    int status = run_guest("\x0f\x05\xc3", 3, 0xc000003e, SYS_exit_group);
    check(WIFEXITED(status) && WEXITSTATUS(status) == DONE, "trapped and named: exit_group by the guest",
          status);
    status = run_guest("\x0f\x05\xc3", 3, 0xc000003e, SYS_clock_gettime);
    check(WIFEXITED(status) && WEXITSTATUS(status) == DONE, "trapped and named: clock_gettime by the guest",
          status);
    status = run_guest("\xcd\x80\xc3", 3, 0x40000003, 1);
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV)
        printf("ok %u - # SKIP this kernel has no int 0x80\n", ++checks);
    else
        check(WIFEXITED(status) && WEXITSTATUS(status) == DONE, "trapped and named: int 0x80 by the guest",
              status);
}

static void place(int from, int to)
{
    if (from < 0 || dup2(from, to) != to)
        abort();
}

static void set_up(void)
{
    int net[2], wire[2], out[2], monitor[2];
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, net) < 0 || socketpair(AF_UNIX, SOCK_DGRAM, 0, wire) < 0 ||
        socketpair(AF_UNIX, SOCK_STREAM, 0, out) < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, monitor) < 0)
        abort();
    place(net[0], NET);
    place(wire[0], NET_SOCKET);
    place(out[0], SANDBOX_FD_CONSOLE);
    place(monitor[0], SANDBOX_FD_CONTROL);
    place(memfd_create("disk", 0), BLOCK);
    place(BLOCK, BLOCK + 1);
    place(NET, SANDBOX_FD_STOP);
    if (write(net[1], "frame", 5) != 5 || write(net[1], "second", 6) != 6 || write(monitor[1], "yes", 3) != 3)
        abort();
}

int main(void)
{
    set_up();
    works(ends, "works: exit_group");
    works(nets, "works: read, write, readv, writev and sendto of nets");
    works(blocks, "works: pread64, pwrite64, fdatasync and readahead of blocks");
    works(console, "works: ppoll, write, pwritev2 and sendto of the console");
    works(control, "works: read and write of the control socket");
    works(segment_bases, "works: arch_prctl of FS");
    works(vdso_clock, "works: the vDSO's clock");
    works(clock_by_a_call_from_elsewhere, "works: clock_gettime as the vDSO falls back to it");
    dies(getpid_at_the_site, "dies: getpid");
    dies(open_at_the_site, "dies: open");
    dies(exec_at_the_site, "dies: execve");
    dies(map_at_the_site, "dies: mmap");
    dies(clone_at_the_site, "dies: clone");
    dies(x32_write, "dies: write with the x32 bit");
    dies(read_of_the_stop, "dies: read of the stop descriptor");
    dies(read_of_the_console, "dies: read of the console");
    dies(read_of_a_block, "dies: read of a block");
    dies(pread_past_the_blocks, "dies: pread64 past the last block");
    dies(readv_past_the_nets, "dies: readv past the last net");
    dies(writev_to_the_console, "dies: writev to the console");
    dies(flush_past_the_blocks, "dies: fdatasync past the last block");
    dies(flush_of_the_console, "dies: fdatasync of the console");
    dies(readahead_past_the_blocks, "dies: readahead past the last block");
    dies(other_prctl_code, "dies: arch_prctl with another code");
    dies(send_to_an_address, "dies: sendto an address");
    dies(write_at_a_place, "dies: pwritev2 of the console at a place of its own choice");
    dies(write_over_what_is_appended_to, "dies: pwritev2 of the console with RWF_NOAPPEND");
    dies(send_out_of_band, "dies: sendto with MSG_OOB");
    dies(clock_of_another_process, "dies: the clock of another process as the vDSO asks");
    dies(clock_of_another_process_at_the_site, "dies: the clock of another process");
    dies(write_from_elsewhere, "dies: write of a net from another instruction");
    dies_or_faults(write_by_the_old_convention, "dies: write by int 0x80");
    dies_or_faults(vsyscall, "dies: getcpu by the vsyscall page");
    test_guest();
    printf("1..%u\n", checks);
    return failures == 0 ? 0 : 1;
}
