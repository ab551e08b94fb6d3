/* The functions that lwIP uses. tcp_guest.c has those that Solo5's bindings do not export. */
#ifndef BENCH_LWIP_STRING_H
#define BENCH_LWIP_STRING_H

#include <stddef.h>

void *memcpy(void *restrict to, const void *restrict from, size_t len);
void *memmove(void *to, const void *from, size_t len);
void *memset(void *to, int byte, size_t len);
int memcmp(const void *a, const void *b, size_t len);
size_t strlen(const char *text);
int strncmp(const char *a, const char *b, size_t len);

#endif
