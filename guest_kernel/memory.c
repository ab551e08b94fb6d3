/*
 * The heap: one sequence of pieces from the end of the image to the stack.
 *
 *     | header | payload ... | header | payload ... | ... | end header |
 *       16 B     16 B or more                               size 0, used
 *
 * A header contains the length of its piece and the length of the piece before it. So both
 * neighbours are found in one step, and no two free pieces are ever adjacent. Free pieces are also
 * in a linked list, whose links lie in their payloads; an allocation takes the first piece that
 * fits. There is one thread, so there are no locks.
 */
#include "kernel.h"

#define HEADER_BYTES ((size_t)16)
#define PIECE_MIN    (2 * HEADER_BYTES)
#define USED         ((size_t)1)

struct piece {
    size_t size_used;                    /* bytes including the header, a multiple of 16; bit 0: used */
    size_t prev_bytes;                   /* bytes of the piece before this one; 0 for the first */
    struct piece *next_free, *prev_free; /* only in a free piece: they lie in its payload */
};
_Static_assert(sizeof(struct piece) == PIECE_MIN, "a free piece holds its links");
_Static_assert(offsetof(struct piece, next_free) == HEADER_BYTES, "the payload begins after the header");

static struct piece *heap_first, *heap_end;
static struct piece *free_list;
static uint64_t memory_bytes;

static size_t piece_bytes(const struct piece *piece)
{
    return piece->size_used & ~USED;
}
static bool piece_is_used(const struct piece *piece)
{
    return piece->size_used & USED;
}

static struct piece *piece_after(struct piece *piece)
{
    return (struct piece *)((uintptr_t)piece + piece_bytes(piece));
}

static struct piece *piece_before(struct piece *piece)
{
    return (struct piece *)((uintptr_t)piece - piece->prev_bytes);
}

static void *piece_payload(struct piece *piece)
{
    return (uint8_t *)piece + HEADER_BYTES;
}

static void piece_set(struct piece *piece, size_t bytes, bool used)
{
    piece->size_used = bytes | (used ? USED : 0);
    piece_after(piece)->prev_bytes = bytes;
}

static void free_list_add(struct piece *piece)
{
    piece->prev_free = NULL;
    piece->next_free = free_list;
    if (free_list) {
        free_list->prev_free = piece;
    }
    free_list = piece;
}

static void free_list_remove(struct piece *piece)
{
    if (piece->prev_free) {
        piece->prev_free->next_free = piece->next_free;
    } else {
        free_list = piece->next_free;
    }
    if (piece->next_free) {
        piece->next_free->prev_free = piece->prev_free;
    }
}

void memory_init(uintptr_t from, uintptr_t to, uint64_t mem_bytes)
{
    memory_bytes = mem_bytes;
    heap_first = (struct piece *)from;
    heap_end = (struct piece *)(to - HEADER_BYTES);
    heap_end->size_used = USED;
    heap_first->prev_bytes = 0;
    piece_set(heap_first, to - HEADER_BYTES - from, false);
    free_list_add(heap_first);
}

uint64_t guest_memory_bytes(void)
{
    return memory_bytes;
}

/* Returns the bytes of the piece that can hold this payload, or 0 if the size is too large. */
static size_t bytes_with_header(size_t payload)
{
    if (payload > SIZE_MAX - 2 * HEADER_BYTES) {
        return 0;
    }
    size_t bytes = (payload + HEADER_BYTES + 15) & ~(size_t)15;
    return bytes < PIECE_MIN ? PIECE_MIN : bytes;
}

/*
 * Makes `piece`, which is in no list, a used piece of `bytes`. The rest of it becomes a free piece.
 */
static void piece_use(struct piece *piece, size_t bytes)
{
    size_t rest = piece_bytes(piece) - bytes;
    if (rest < PIECE_MIN) {
        piece_set(piece, piece_bytes(piece), true);
        return;
    }
    piece_set(piece, bytes, true);
    struct piece *tail = piece_after(piece);
    piece_set(tail, rest, false);
    struct piece *next = piece_after(tail);
    if (!piece_is_used(next)) { /* happens only when a used piece shrinks */
        free_list_remove(next);
        piece_set(tail, rest + piece_bytes(next), false);
    }
    free_list_add(tail);
}

void *guest_alloc(size_t payload)
{
    size_t bytes = bytes_with_header(payload);
    if (!bytes) {
        return NULL;
    }
    for (struct piece *piece = free_list; piece; piece = piece->next_free) {
        if (piece_bytes(piece) >= bytes) {
            free_list_remove(piece);
            piece_use(piece, bytes);
            return piece_payload(piece);
        }
    }
    return NULL;
}

void *guest_calloc(size_t count, size_t bytes)
{
    size_t total;
    if (__builtin_mul_overflow(count, bytes, &total)) {
        return NULL;
    }
    void *piece = guest_alloc(total);
    return piece ? memset(piece, 0, total) : NULL;
}

/*
 * Returns the piece of a payload that guest_alloc() returned. A wrong or freed pointer is a panic.
 */
static struct piece *piece_of(void *payload, const char *who)
{
    struct piece *piece = (struct piece *)((uintptr_t)payload - HEADER_BYTES);
    bool inside = piece >= heap_first && piece < heap_end && (uintptr_t)piece % 16 == 0;
    if (!inside || !piece_is_used(piece) || piece_after(piece) > heap_end ||
        piece_after(piece)->prev_bytes != piece_bytes(piece)) {
        panic("memory: %s of %p, which is not an allocated piece", who, payload);
    }
    return piece;
}

void guest_free(void *payload)
{
    if (!payload) {
        return;
    }
    struct piece *piece = piece_of(payload, "free");
    size_t bytes = piece_bytes(piece);
    struct piece *next = piece_after(piece);
    if (!piece_is_used(next)) {
        free_list_remove(next);
        bytes += piece_bytes(next);
    }
    if (piece->prev_bytes && !piece_is_used(piece_before(piece))) {
        piece->size_used &= ~USED; /* so that a second free of this pointer is detected */
        piece = piece_before(piece);
        free_list_remove(piece);
        bytes += piece_bytes(piece);
    }
    piece_set(piece, bytes, false);
    free_list_add(piece);
}

void *guest_realloc(void *old, size_t payload)
{
    if (!old) {
        return guest_alloc(payload);
    }
    struct piece *piece = piece_of(old, "realloc");
    size_t bytes = bytes_with_header(payload);
    if (!bytes) {
        return NULL;
    }
    struct piece *next = piece_after(piece);
    if (piece_bytes(piece) < bytes && !piece_is_used(next) &&
        piece_bytes(piece) + piece_bytes(next) >= bytes) {
        free_list_remove(next);
        piece_set(piece, piece_bytes(piece) + piece_bytes(next), true);
    }
    if (piece_bytes(piece) >= bytes) {
        piece_use(piece, bytes);
        return old;
    }
    void *moved = guest_alloc(payload);
    if (moved) {
        memcpy(moved, old, piece_bytes(piece) - HEADER_BYTES);
        guest_free(old);
    }
    return moved;
}

struct heap_stats heap_check(void)
{
    struct heap_stats stats = {.total_bytes = (size_t)((uintptr_t)heap_end - (uintptr_t)heap_first)};
    size_t prev_bytes = 0;
    bool prev_free = false;
    for (struct piece *piece = heap_first; piece != heap_end; piece = piece_after(piece)) {
        size_t bytes = piece_bytes(piece);
        bool is_free = !piece_is_used(piece);
        if (bytes < PIECE_MIN || bytes % 16 || bytes > (uintptr_t)heap_end - (uintptr_t)piece ||
            piece->prev_bytes != prev_bytes || (is_free && prev_free)) {
            panic("memory: the heap is corrupt at %p: the header has %zu bytes, and %zu before it",
                  (void *)piece, bytes, piece->prev_bytes);
        }
        if (is_free) {
            size_t payload = bytes - HEADER_BYTES;
            stats.free_pieces++;
            stats.free_bytes += payload;
            stats.largest_bytes = payload > stats.largest_bytes ? payload : stats.largest_bytes;
        } else {
            stats.used_pieces++;
        }
        prev_bytes = bytes;
        prev_free = is_free;
    }
    return stats;
}
