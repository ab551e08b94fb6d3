/*
 * The offsets of the requests of `python bench block`. They are the same for a guest and for the bare loop:
 * in sequence or at random, in whole pieces of `size` bytes, within `capacity`.
 */
#ifndef BENCH_BLOCK_PATTERN_H
#define BENCH_BLOCK_PATTERN_H

#include <stdbool.h>
#include <stdint.h>

struct pattern {
    bool random;
    uint64_t size, pieces;
    uint64_t state; /* the state of the generator, or the next piece */
};

static inline struct pattern pattern_of(bool random, uint64_t size, uint64_t capacity)
{
    return (struct pattern){
        .random = random, .size = size, .pieces = capacity / size, .state = random ? 88172645463325252u : 0};
}

static inline uint64_t pattern_next(struct pattern *p)
{
    if (p->random) { /* xorshift64: the numbers must be spread well, but may be predictable */
        p->state ^= p->state << 13;
        p->state ^= p->state >> 7;
        p->state ^= p->state << 17;
        return p->state % p->pieces * p->size;
    }
    uint64_t at = p->state * p->size;
    p->state = p->state + 1 == p->pieces ? 0 : p->state + 1;
    return at;
}

#endif
