/* The parts of a native test: claims, one TAP line for each. A test ends with `return claims_end();`. */
#ifndef TEST_HOLDS_H
#define TEST_HOLDS_H

#ifdef NDEBUG
#error "asserts are compiled out: pass -Db_ndebug=false to meson"
#endif

#include <stdbool.h>
#include <stdio.h>

static unsigned checks;
static unsigned failures;

static inline void check(bool holds, const char *claim, int line)
{
    checks++;
    failures += !holds;
    printf("%s %u - line %d: %s\n", holds ? "ok" : "not ok", checks, line, claim);
}

#define HOLDS(expression) check((expression), #expression, __LINE__)

static inline int claims_end(void)
{
    printf("1..%u\n", checks);
    return failures == 0 ? 0 : 1;
}

#endif
