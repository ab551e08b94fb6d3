/* Checks a promise that a fuzzer holds: a broken one ends the fuzzer with its place, and libFuzzer
 * keeps the input. */
#ifndef TENDER_FUZZ_MUST_H
#define TENDER_FUZZ_MUST_H

#ifdef NDEBUG
#error "asserts are compiled out: a fuzzer is built with -UNDEBUG"
#endif

#include <stdio.h>
#include <stdlib.h>

#define MUST(expression)                                                                                     \
    do {                                                                                                     \
        if (!(expression)) {                                                                                 \
            fprintf(stderr, "%s:%d: broken promise: %s\n", __FILE__, __LINE__, #expression);                 \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)

#endif
