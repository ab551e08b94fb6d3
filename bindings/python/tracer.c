/*
 * The kernel's calls for a debugger: a thread of another process is traced, and memory is read and
 * written.
 *
 * A word that PTRACE_PEEK... reads is not mixed up with an error, as libc's wrapper would do. What
 * an error means is decided in tender/debug/ptrace.py.
 */
#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

int64_t tn_ptrace(int request, int tid, uint64_t address, uint64_t data)
{
    const long answer = syscall(SYS_ptrace, (long)request, (long)tid, address, data);
    return answer < 0 ? -errno : answer;
}

int64_t tn_ptrace_regset(int request, int tid, unsigned type, void *data, size_t size)
{
    struct iovec there = {data, size};
    const int64_t answer = tn_ptrace(request, tid, type, (uintptr_t)&there);
    return answer < 0 ? answer : (int64_t)there.iov_len;
}

int tn_wait(int tid, int options, int *status)
{
    const int answer = (int)syscall(SYS_wait4, (long)tid, status, (long)options, NULL);
    return answer < 0 ? -errno : answer;
}

int64_t tn_process_read(int pid, uint64_t address, void *to, size_t size)
{
    const struct iovec here = {to, size}, there = {(void *)(uintptr_t)address, size};
    const ssize_t answer = process_vm_readv(pid, &here, 1, &there, 1, 0);
    return answer < 0 ? -errno : answer;
}

int64_t tn_process_write(int pid, uint64_t address, const void *from, size_t size)
{
    const struct iovec here = {(void *)(uintptr_t)from, size}, there = {(void *)(uintptr_t)address, size};
    const ssize_t answer = process_vm_writev(pid, &here, 1, &there, 1, 0);
    return answer < 0 ? -errno : answer;
}
