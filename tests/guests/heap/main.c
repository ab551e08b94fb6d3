/*
 * The heap returns NULL when it is full, joins freed pieces, does not let neighbours overlap, and
 * reaches up to the stack.
 *
 *     heap [--overrun | --double-free]     each of these must panic: status 255
 */
#include <tender/guest.h>

TENDER_MANIFEST(0);

#define PIECES 512

static uint8_t *pieces[PIECES];
static size_t sizes[PIECES];

static uint64_t random_next(void)
{
    static uint64_t state = 88172645463325252;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static bool piece_is_intact(size_t i)
{
    for (size_t k = 0; k < sizes[i]; k++) {
        if (pieces[i][k] != (uint8_t)i) {
            return false;
        }
    }
    return true;
}

static const char *shuffle(void)
{
    for (unsigned round = 0; round < 20000; round++) {
        size_t i = random_next() % PIECES;
        size_t size = random_next() % 2000;
        if (pieces[i] && !piece_is_intact(i)) {
            return "a piece was overwritten";
        }
        if (pieces[i] && random_next() % 2) {
            guest_free(pieces[i]);
            pieces[i] = NULL;
            continue;
        }
        size_t kept = pieces[i] && sizes[i] < size ? sizes[i] : size;
        uint8_t *moved = guest_realloc(pieces[i], size);
        if (!moved || (uintptr_t)moved % 16) {
            return "realloc failed or is not 16-byte aligned";
        }
        for (size_t k = 0; pieces[i] && k < kept; k++) {
            if (moved[k] != (uint8_t)i) {
                return "realloc lost content";
            }
        }
        pieces[i] = moved;
        sizes[i] = size;
        memset(moved, (int)i, size);
        if (round % 500 == 0) {
            heap_check();
        }
    }
    for (size_t i = 0; i < PIECES; i++) {
        guest_free(pieces[i]);
        pieces[i] = NULL;
    }
    return NULL;
}

/* Allocates 64 KiB pieces until there are no more. Writes each completely and links it to the one
 * before. */
static size_t fill(void **last)
{
    size_t count = 0;
    *last = NULL;
    for (void **piece; (piece = guest_alloc(65536)); count++) {
        memset(piece, 0x5a, 65536);
        *piece = *last;
        *last = piece;
    }
    return count;
}

static const char *failure(void)
{
    struct heap_stats fresh = heap_check();
    void *last;
    size_t first_count = fill(&last);
    if (first_count < 2 || first_count * 65536 + 3 * 65536 < fresh.total_bytes) {
        return "the heap filled too early";
    }
    while (last) {
        void *before = *(void **)last;
        guest_free(last);
        last = before;
    }
    struct heap_stats after = heap_check();
    if (after.free_pieces != 1 || after.largest_bytes != fresh.largest_bytes || after.used_pieces) {
        return "pieces given back did not join";
    }
    const char *what = shuffle();
    after = heap_check();
    if (!what && (after.free_pieces != 1 || after.largest_bytes != fresh.largest_bytes)) {
        what = "pieces given back after the shuffle did not join";
    }
    void *all = guest_alloc(fresh.largest_bytes);
    if (!what && (!all || guest_alloc(1) || guest_alloc(SIZE_MAX) || guest_calloc(SIZE_MAX / 2, 3))) {
        what = "the limits are wrong";
    }
    guest_free(all);
    printf("heap: %zu bytes, %zu pieces of 64 KiB\n", fresh.total_bytes, first_count);
    return what;
}

int main(int argc, char **argv)
{
    if (args_has(argc, argv, "--overrun")) {
        uint8_t *piece = guest_alloc(32);
        __asm__("" : "+r"(piece));
        memset(piece, 0xee, 64);
        heap_check();
        return 99;
    }
    if (args_has(argc, argv, "--double-free")) {
        void *piece = guest_alloc(32);
        void *again = piece;
        __asm__("" : "+r"(again));
        guest_free(piece);
        guest_free(again);
        return 99;
    }
    const char *what = failure();
    printf("heap: %s\n", what ? what : "OK");
    return what ? 1 : 0;
}
