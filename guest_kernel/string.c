/*
 * Bytes and text. GCC may generate calls of memcpy, memmove, memset and memcmp for any code, so
 * they must exist even if no source calls them. memcpy and memset use the string instructions,
 * which CPUs since 2013 run as fast as vector loops.
 *
 * This file is built with -fno-tree-loop-distribute-patterns (meson.build). Without it, GCC
 * recognises the loops below and makes each function call itself.
 */
#include "kernel.h"

void *memcpy(void *restrict to, const void *restrict from, size_t len)
{
    void *at = to;
    __asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(len) : : "memory");
    return to;
}

void *memset(void *to, int byte, size_t len)
{
    void *at = to;
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(len) : "a"(byte) : "memory");
    return to;
}

void *memmove(void *to, const void *from, size_t len)
{
    if ((uintptr_t)to - (uintptr_t)from >=
        len) { /* `to` is below `from` (the difference wraps), or at least `len` above it */
        return memcpy(to, from, len);
    }
    uint8_t *to_byte = to;
    const uint8_t *from_byte = from;
    while (len--) {
        to_byte[len] = from_byte[len];
    }
    return to;
}

int memcmp(const void *a, const void *b, size_t len)
{
    const uint8_t *x = a, *y = b;
    for (size_t i = 0; i < len; i++) {
        if (x[i] != y[i]) {
            return x[i] - y[i];
        }
    }
    return 0;
}

void *memchr(const void *bytes, int byte, size_t len)
{
    const uint8_t *at = bytes;
    for (size_t i = 0; i < len; i++) {
        if (at[i] == (uint8_t)byte) {
            return (void *)(uintptr_t)&at[i];
        }
    }
    return NULL;
}

size_t strnlen(const char *text, size_t max)
{
    size_t len = 0;
    while (len < max && text[len]) {
        len++;
    }
    return len;
}

size_t strlen(const char *text)
{
    return strnlen(text, SIZE_MAX);
}

int strncmp(const char *a, const char *b, size_t max)
{
    for (size_t i = 0; i < max; i++) {
        if (a[i] != b[i] || !a[i]) {
            return (uint8_t)a[i] - (uint8_t)b[i];
        }
    }
    return 0;
}

int strcmp(const char *a, const char *b)
{
    return strncmp(a, b, SIZE_MAX);
}

char *strchr(const char *text, int c)
{
    return memchr(text, c, strlen(text) + 1);
}
