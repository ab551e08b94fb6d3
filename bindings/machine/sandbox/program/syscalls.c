/*
 * The functions that core/ takes from libc, for a program that has no libc: the same names, one system call
 * each.
 *
 * None of them touches thread-local storage (the FS base belongs to the guest) or a vector register (these
 * belong to the guest too). There is one thread, so errno is a variable.
 */
#define _GNU_SOURCE
#include "syscalls.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "hypercall.h"

static int error_number;

int *__errno_location(void)
{
    return &error_number;
}

static int64_t answer(int64_t value)
{
    if (value >= 0)
        return value;
    error_number = (int)-value;
    return -1;
}

#define CALL(number, a, b, c, d, e, f)                                                                       \
    answer(system_call((uint64_t)(a), (uint64_t)(b), (uint64_t)(c), (uint64_t)(d), (uint64_t)(e),            \
                       (uint64_t)(f), number))

ssize_t read(int fd, void *to, size_t len)
{
    return answer(system_call_3((uint64_t)fd, (uint64_t)to, len, SYS_read));
}

ssize_t write(int fd, const void *from, size_t len)
{
    return answer(system_call_3((uint64_t)fd, (uint64_t)from, len, SYS_write));
}

ssize_t readv(int fd, const struct iovec *pieces, int count)
{
    return CALL(SYS_readv, fd, pieces, count, 0, 0, 0);
}

ssize_t writev(int fd, const struct iovec *pieces, int count)
{
    return CALL(SYS_writev, fd, pieces, count, 0, 0, 0);
}

ssize_t pread(int fd, void *to, size_t len, off_t offset)
{
    return CALL(SYS_pread64, fd, to, len, offset, 0, 0);
}

ssize_t pwrite(int fd, const void *from, size_t len, off_t offset)
{
    return CALL(SYS_pwrite64, fd, from, len, offset, 0, 0);
}

int fdatasync(int fd)
{
    return (int)CALL(SYS_fdatasync, fd, 0, 0, 0, 0, 0);
}

ssize_t readahead(int fd, off_t offset, size_t len)
{
    return CALL(SYS_readahead, fd, offset, len, 0, 0, 0);
}

ssize_t pwritev2(int fd, const struct iovec *pieces, int count, off_t offset, int flags)
{
    /* The kernel takes the offset in two halves; the high half is ignored where long has 64 bits. */
    return CALL(SYS_pwritev2, fd, pieces, count, offset, 0, flags);
}

ssize_t send(int fd, const void *from, size_t len, int flags)
{
    return CALL(SYS_sendto, fd, from, len, flags, 0, 0);
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    const uint64_t argument = va_arg(arguments, uint64_t);
    va_end(arguments);
    return (int)CALL(SYS_ioctl, fd, request, argument, 0, 0, 0);
}

/* These are called before the filter is in force; afterwards such a call ends the process. */
void *mmap(void *at, size_t len, int protection, int flags, int fd, off_t offset)
{
    return (void *)(uintptr_t)CALL(SYS_mmap, at, len, protection, flags, fd, offset); /* -1 is MAP_FAILED */
}

int munmap(void *at, size_t len)
{
    return (int)CALL(SYS_munmap, at, len, 0, 0, 0, 0);
}

int madvise(void *at, size_t len, int advice)
{
    return (int)CALL(SYS_madvise, at, len, advice, 0, 0, 0);
}

/* The kernel writes the remaining time into the timeout; POSIX leaves it untouched. The filter refuses a
 * mask, with which a guest could wait and ignore a stop. No mask is needed: the kick's handler does not
 * return. */
int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask)
{
    (void)mask;
    struct timespec left = {0, 0};
    if (timeout)
        left = *timeout;
    return (int)CALL(SYS_ppoll, fds, count, timeout ? &left : NULL, NULL, 0, 0);
}

/* SIGPIPE is ignored in this program. */
int64_t write_quietly(int fd, const void *data, uint64_t len)
{
    return system_call_3((uint64_t)fd, (uint64_t)data, len, SYS_write);
}

/* ---- the clock */

static int (*vdso_clock_gettime)(clockid_t, struct timespec *);

int clock_gettime(clockid_t clock, struct timespec *now)
{
    if (vdso_clock_gettime)
        return vdso_clock_gettime(clock, now);
    return (int)CALL(SYS_clock_gettime, clock, now, 0, 0, 0, 0);
}

static bool is_wanted(const char *name)
{
    static const char wanted[] = "__vdso_clock_gettime";
    for (size_t i = 0; i < sizeof wanted; i++)
        if (name[i] != wanted[i])
            return false;
    return true;
}

/* vdso(7): an ELF image that the kernel has mapped. Its symbols are found in the way of a dynamic linker. */
void clock_find(const uint8_t *image)
{
    if (!image)
        return;
    const Elf64_Ehdr *ehdr = (const void *)image;
    const Elf64_Phdr *phdr = (const void *)(image + ehdr->e_phoff);
    const uint8_t *base = NULL;
    const Elf64_Dyn *dynamic = NULL;
    for (unsigned i = 0; i < ehdr->e_phnum; i++) {
        if (phdr[i].p_type == PT_LOAD && !base)
            base = image + phdr[i].p_offset - phdr[i].p_vaddr;
        if (phdr[i].p_type == PT_DYNAMIC)
            dynamic = (const void *)(image + phdr[i].p_offset);
    }
    if (!base || !dynamic)
        return;
    const Elf64_Sym *symbols = NULL;
    const char *names = NULL;
    const uint32_t *hash = NULL;
    for (; dynamic->d_tag != DT_NULL; dynamic++) {
        const void *target = base + dynamic->d_un.d_ptr;
        if (dynamic->d_tag == DT_SYMTAB)
            symbols = target;
        else if (dynamic->d_tag == DT_STRTAB)
            names = target;
        else if (dynamic->d_tag == DT_HASH)
            hash = target;
    }
    if (!symbols || !names)
        return;
    /* Without a DT_HASH the table ends where the next one begins: the linker puts the names after it. */
    size_t count = hash                            ? hash[1]
                   : (const char *)symbols < names ? (size_t)(names - (const char *)symbols) / sizeof *symbols
                                                   : 0;
    for (size_t i = 0; i < count; i++)
        if (symbols[i].st_shndx != SHN_UNDEF && is_wanted(names + symbols[i].st_name)) {
            vdso_clock_gettime =
                (int (*)(clockid_t, struct timespec *))(uintptr_t)(base + symbols[i].st_value);
            return;
        }
}

/* ---- memory: the compiler calls these by name. Its own builtins for them would be calls of them. */

/* The string instruction takes a few tens of cycles to start, and a hypercall's structure has 8 to 40
 * bytes. */
#define SHORT_COPY 128

void *memcpy(void *restrict to, const void *restrict from, size_t len)
{
    void *start = to;
    if (len <= SHORT_COPY) {
        uint8_t *out = to;
        const uint8_t *in = from;
#pragma GCC unroll 8
        for (; len > sizeof(uint64_t); len -= sizeof(uint64_t)) {
            uint64_t word;
            __builtin_memcpy(&word, in, sizeof word);
            __builtin_memcpy(out, &word, sizeof word);
            in += sizeof word;
            out += sizeof word;
        }
        for (; len >= sizeof(uint32_t); len -= sizeof(uint32_t)) {
            uint32_t half;
            __builtin_memcpy(&half, in, sizeof half);
            __builtin_memcpy(out, &half, sizeof half);
            in += sizeof half;
            out += sizeof half;
        }
        while (len--)
            *out++ = *in++;
        return start;
    }
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(len) : : "memory");
    return start;
}

void *memset(void *to, int byte, size_t len)
{
    void *start = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(len) : "a"(byte) : "memory");
    return start;
}

int memcmp(const void *a, const void *b, size_t len)
{
    const uint8_t *one = a, *other = b;
    for (; len && *one == *other; len--)
        one++, other++;
    return len ? *one - *other : 0;
}

/* clang's name for a memcmp() whose result is only compared with 0. */
int bcmp(const void *a, const void *b, size_t len);
int bcmp(const void *a, const void *b, size_t len)
{
    return memcmp(a, b, len);
}
