/*
 * Starts a command as often as it is asked to, from a very small process. So a peer's times are taken by C
 * and not by an interpreter.
 *
 *     spawn_loop COMMAND [WORD ...]
 *
 * Each line on standard input starts the command once. Its standard output is descriptor 3 of this process,
 * its error output that of this process, its standard input /dev/null. The answer is a line "SPAWN REAPED
 * CPU_NS FAULTS": the CLOCK_MONOTONIC nanoseconds just before posix_spawn() and when wait4() has the status,
 * then the CPU time and the minor page faults of the command.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

extern char **environ;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t of_timeval(struct timeval t)
{
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_usec * 1000u;
}

int main(int argc, char **argv)
{
    char line[16];
    posix_spawn_file_actions_t actions;
    if (argc < 2 || posix_spawn_file_actions_init(&actions) ||
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0) ||
        posix_spawn_file_actions_adddup2(&actions, 3, 1) || posix_spawn_file_actions_addclose(&actions, 3))
        return 2;
    while (fgets(line, sizeof line, stdin)) {
        pid_t pid;
        int status;
        struct rusage usage;
        uint64_t spawn = now_ns();
        int error = posix_spawnp(&pid, argv[1], &actions, NULL, argv + 1, environ);
        if (error) {
            fprintf(stderr, "%s: %s\n", argv[1], strerror(error));
            return 1;
        }
        if (wait4(pid, &status, 0, &usage) != pid)
            return 1;
        uint64_t reaped = now_ns();
        if (status) {
            fprintf(stderr, "%s: ended with wait status %#x\n", argv[1], (unsigned)status);
            return 1;
        }
        printf("%llu %llu %llu %ld\n", (unsigned long long)spawn, (unsigned long long)reaped,
               (unsigned long long)(of_timeval(usage.ru_utime) + of_timeval(usage.ru_stime)),
               usage.ru_minflt);
        fflush(stdout);
    }
    return 0;
}
