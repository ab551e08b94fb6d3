/* Writes to a constant. The host must stop it; 99 if it does not. */
#include <tender/guest.h>

TENDER_MANIFEST(0);

static const volatile uint8_t constant[64] = {1};

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    volatile uint8_t *rodata = (volatile uint8_t *)(uintptr_t)constant;
    printf("write_rodata: writing to %p\n", (void *)(uintptr_t)rodata);
    *rodata = 2;
    printf("NOT STOPPED\n");
    return 99;
}
