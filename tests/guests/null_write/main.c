/* Writes to address 8, which is never mapped: the guest's own trap dump with cr2 8, status 255. */
#include <tender/guest.h>

TENDER_MANIFEST(0);

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    volatile uint64_t *low = (volatile uint64_t *)8;
    __asm__("" : "+r"(low)); /* hides the address from the compiler */
    *low = 1;
    printf("NOT STOPPED\n");
    return 99;
}
