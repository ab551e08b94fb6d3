/*
 * What `python bench block` compares a guest with: the same requests, as system calls of a plain process.
 *
 *     bare_block FILE read|write seq|rand|cold SIZE COUNT
 *
 * It calls pread() or pwrite() at the offsets of block_pattern.h, and prints the same line as block_guest.c.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "block_pattern.h"

#define SIZE_MAX_BYTES 65536

static uint8_t buffer[SIZE_MAX_BYTES] __attribute__((aligned(4096)));

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static bool make(int fd, bool write, struct pattern *at, uint64_t size, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        off_t offset = (off_t)pattern_next(at);
        ssize_t done = write ? pwrite(fd, buffer, size, offset) : pread(fd, buffer, size, offset);
        if (done != (ssize_t)size)
            return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    struct stat status;
    int fd = argc == 6 ? open(argv[1], O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0 || fstat(fd, &status)) {
        perror("bare_block FILE read|write seq|rand|cold SIZE COUNT");
        return 1;
    }
    bool write = strcmp(argv[2], "write") == 0, cold = strcmp(argv[3], "cold") == 0;
    bool random = cold || strcmp(argv[3], "rand") == 0;
    uint64_t size = strtoull(argv[4], NULL, 10), count = strtoull(argv[5], NULL, 10);
    if (!size || size > SIZE_MAX_BYTES || size > (uint64_t)status.st_size)
        return 1;
    struct pattern pattern = pattern_of(random, size, (uint64_t)status.st_size);
    struct pattern warm = pattern_of(false, size, (uint64_t)status.st_size);
    bool done = cold || make(fd, write, &warm, size, warm.pieces);
    uint64_t begin = now_ns();
    done = done && make(fd, write, &pattern, size, count);
    uint64_t end = now_ns();
    if (!done) {
        perror("bare_block");
        return 1;
    }
    printf("%s %s %llu %llu %llu\n", argv[2], argv[3], (unsigned long long)size, (unsigned long long)count,
           (unsigned long long)(end - begin));
    return 0;
}
