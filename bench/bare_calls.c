/*
 * What `python bench hypercall` compares a guest with: the same work, as system calls of a plain process.
 *
 *     bare_calls CALLS SOCKET FILE filtered|plain
 *
 * It prints lines "KIND CYCLES" like hypercall_guest.c: cycles of the time stamp counter for CALLS calls,
 * after as many calls that are not counted. A system call is one instruction, without libc around it.
 * walltime is clock_gettime() of the vDSO, which is not a system call. `filtered` installs the seccomp filter
 * of the sandbox, compiled from the same rules. The filter recognizes a descriptor by its number and the
 * `syscall` instruction by its address, so this program has only one such instruction, too.
 */
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "fds.h"
#include "program/filter.h"

#define FRAME_BYTES 1514
#define BLOCK_BYTES 512
#define EAGAIN_     (-11)

static char buffer[FRAME_BYTES] __attribute__((aligned(64)));

int64_t bare_call(uint64_t a, const void *b, uint64_t c, uint64_t d, uint64_t number);
extern const char bare_call_return[];
__asm__(".pushsection .text\n"
        ".type bare_call, @function\n"
        "bare_call:\n\t"
        "mov %rcx, %r10\n\t"
        "mov %r8, %rax\n\t"
        "syscall\n"
        "bare_call_return:\n\t"
        "ret\n"
        ".size bare_call, . - bare_call\n"
        ".popsection\n");

static uint64_t cycles(void)
{
    uint32_t low, high;
    __asm__ volatile("lfence\n\trdtsc\n\tlfence" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}

static void check(int right, const char *what)
{
    if (!right) {
        perror(what);
        exit(1);
    }
}

static void filter(void)
{
    struct sock_filter code[FILTER_LENGTH];
    filter_build(code, (uint64_t)(uintptr_t)bare_call_return);
    const struct sock_fprog program = {FILTER_LENGTH, code};
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no_new_privs");
    check(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0, "seccomp");
}

#define MEASURE(at, action, expected)                                                                        \
    do {                                                                                                     \
        uint64_t start = 0;                                                                                  \
        for (uint64_t i = 0; i < 2 * calls; i++) {                                                           \
            if (i == calls)                                                                                  \
                start = cycles();                                                                            \
            if ((action) != (expected))                                                                      \
                bare_call(3, NULL, 0, 0, SYS_exit_group);                                                    \
        }                                                                                                    \
        results[at] = cycles() - start;                                                                      \
    } while (0)

int main(int argc, char **argv)
{
    uint64_t results[3];
    struct timespec now;
    check(argc == 5, "CALLS SOCKET FILE filtered|plain");
    uint64_t calls = strtoull(argv[1], NULL, 10);
    check(dup2(atoi(argv[2]), SANDBOX_FDS_net) >= 0 && dup2(atoi(argv[3]), SANDBOX_FDS_block) >= 0 &&
              dup2(1, SANDBOX_FD_CONSOLE) >= 0,
          "dup2");
    if (strcmp(argv[4], "filtered") == 0)
        filter();
    MEASURE(0, clock_gettime(CLOCK_REALTIME, &now), 0);
    MEASURE(1, bare_call(SANDBOX_FDS_net, buffer, FRAME_BYTES, 0, SYS_read), EAGAIN_);
    MEASURE(2, bare_call(SANDBOX_FDS_block, buffer, BLOCK_BYTES, 0, SYS_pread64), BLOCK_BYTES);
    char text[200];
    int len = snprintf(text, sizeof text, "walltime %llu\nnet_read %llu\nblock_read %llu\n",
                       (unsigned long long)results[0], (unsigned long long)results[1],
                       (unsigned long long)results[2]);
    bare_call(SANDBOX_FD_CONSOLE, text, (uint64_t)len, 0, SYS_write);
    for (;;)
        bare_call(0, NULL, 0, 0, SYS_exit_group);
}
