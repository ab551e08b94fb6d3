/* Writes to a constant. The host must stop it; 99 if it does not. */
#include <tender/guest.h>

TENDER_MANIFEST(0);

static const uint8_t constant[64] = {1}; /* not volatile: GCC would put it into .data */

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    volatile uint8_t *rodata = (volatile uint8_t *)(uintptr_t)constant;
    __asm__("" : "+r"(rodata)); /* the compiler must not know the address */
    printf("write_rodata: writing to %p\n", (void *)(uintptr_t)rodata);
    *rodata = 2;
    printf("NOT STOPPED\n");
    return 99;
}
