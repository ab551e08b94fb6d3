/*
 * A guest that leaks: it touches memory that it never gives back, and waits in between.
 *
 *     leak.elf BYTES NS     prints "ready", then touches so many more bytes each NS nanoseconds; status 0
 *                           and "full" when no memory is left
 */
#include <tender/guest.h>

TENDER_MANIFEST(0);

static uint64_t number(const char *text)
{
    uint64_t value = 0;
    while (*text >= '0' && *text <= '9')
        value = value * 10 + (uint64_t)(*text++ - '0');
    return value;
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    const uint64_t bytes = number(argv[0]), pause_ns = number(argv[1]);
    printf("ready\n");
    for (;;) {
        char *piece = guest_alloc(bytes);
        if (!piece)
            break;
        memset(piece, 1, bytes);
        poll_wait(pause_ns, NULL);
    }
    printf("full\n");
    return 0;
}
