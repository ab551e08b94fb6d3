/* Compiled with -fstack-protector-all. Without an argument it ends with 0. With `smash` it writes
 * past an array of its own, and the canary stops it: "ABORT: stack smashed", 255. */
#include <tender/guest.h>

TENDER_MANIFEST(0);

__attribute__((noinline)) static int fill(size_t bytes)
{
    volatile uint8_t array[32];
    volatile uint8_t *at = array;
    for (size_t i = 0; i < bytes; i++)
        at[i] = 0x41;
    return array[31] == 0x41 ? 0 : 1;
}

int main(int argc, char **argv)
{
    return fill(args_has(argc, argv, "smash") ? 64 : 32);
}
