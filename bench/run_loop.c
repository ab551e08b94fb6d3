/*
 * Runs a command as often as it is asked to, and takes the times of each run, from a very small process. So
 * no interpreter is part of the figure.
 *
 *     run_loop LIMIT_S COMMAND [WORD ...]
 *
 * Each line on standard input starts one run. The run's standard output is a pipe to this process, its error
 * output is that of this process, and its standard input is /dev/null. The answer is a line "SPAWN FIRST LAST
 * EOF REAPED CPU_NS FAULTS": the CLOCK_MONOTONIC nanoseconds just before posix_spawn(), when the first and
 * the last piece of output were seen (0: there was none), when the pipe was closed, and when wait4() had the
 * status; then the CPU time and the minor page faults of the whole run. If a command ends with a status other
 * than 0, or does not end within LIMIT_S seconds (0: no limit), this process ends too, with a message.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

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

static int failed(const char *command, const char *what)
{
    fprintf(stderr, "%s: %s\n", command, what);
    return 1;
}

static int run(char **words, int limit_ms)
{
    int ends[2], status;
    posix_spawn_file_actions_t actions;
    if (pipe2(ends, O_CLOEXEC) || posix_spawn_file_actions_init(&actions) ||
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0) ||
        posix_spawn_file_actions_adddup2(&actions, ends[1], 1))
        return failed(words[0], "no pipe");
    pid_t pid;
    uint64_t spawn = now_ns(), first = 0, last = 0, eof;
    int error = posix_spawnp(&pid, words[0], &actions, NULL, words, environ);
    close(ends[1]);
    posix_spawn_file_actions_destroy(&actions);
    if (error)
        return failed(words[0], strerror(error));
    static char piece[65536];
    for (;;) {
        struct pollfd readable = {.fd = ends[0], .events = POLLIN};
        if (poll(&readable, 1, limit_ms) != 1) {
            kill(pid, SIGKILL);
            waitpid(pid, &status, 0);
            return failed(words[0], "still running after its time limit: killed");
        }
        eof = now_ns();
        if (read(ends[0], piece, sizeof piece) <= 0)
            break;
        first = first ? first : eof;
        last = eof;
    }
    close(ends[0]);
    struct rusage usage;
    if (wait4(pid, &status, 0, &usage) != pid)
        return failed(words[0], "cannot be waited for");
    uint64_t reaped = now_ns();
    if (status) {
        fprintf(stderr, "%s: ended with %s %d\n", words[0], WIFEXITED(status) ? "status" : "signal",
                WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
        return 1;
    }
    printf("%llu %llu %llu %llu %llu %llu %ld\n", (unsigned long long)spawn, (unsigned long long)first,
           (unsigned long long)last, (unsigned long long)eof, (unsigned long long)reaped,
           (unsigned long long)(of_timeval(usage.ru_utime) + of_timeval(usage.ru_stime)), usage.ru_minflt);
    fflush(stdout);
    return 0;
}

int main(int argc, char **argv)
{
    char line[16];
    if (argc < 3)
        return failed("run_loop", "LIMIT_S COMMAND [WORD ...]");
    int limit_s = atoi(argv[1]);
    while (fgets(line, sizeof line, stdin)) {
        if (run(argv + 2, limit_s ? limit_s * 1000 : -1))
            return 1;
    }
    return 0;
}
