/* Writes to 16 GiB, past all memory: the guest's own trap dump with cr2 0x400000000, status 255. */
#include <tender/guest.h>

TENDER_MANIFEST(0);

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    *(volatile uint64_t *)0x400000000 = 1;
    printf("NOT STOPPED\n");
    return 99;
}
