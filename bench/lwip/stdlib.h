/* The part of stdlib.h that lwIP uses. */
#ifndef BENCH_LWIP_STDLIB_H
#define BENCH_LWIP_STDLIB_H

#include <stddef.h>

int atoi(const char *text);

#endif
