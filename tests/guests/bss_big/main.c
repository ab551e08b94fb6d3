/* Has 64 MiB of bss that no file contains. Checks the first place, the last place and each 2 MiB:
 * zero and writable. Prints "bss_big: OK". */
#include <tender/guest.h>

TENDER_MANIFEST(0);

#define BIG_BYTES (64U << 20)
#define STEP      (2U << 20)

static volatile uint8_t big[BIG_BYTES];

static bool touch(uint32_t at)
{
    bool was_zero = big[at] == 0;
    big[at] = 0xa5;
    if (!was_zero || big[at] != 0xa5) {
        printf("bss_big: FAILED at %u\n", at);
    }
    return was_zero && big[at] == 0xa5;
}

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    bool right = touch(BIG_BYTES - 1);
    for (uint32_t at = 0; at < BIG_BYTES; at += STEP) {
        right = touch(at) && right;
    }
    printf("bss_big: %s\n", right ? "OK" : "FAILED");
    return !right;
}
