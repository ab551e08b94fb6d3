/* Writes to a constant. The host must stop it. Status 99 if the host does not. */
#include <tender/guest.h>

TENDER_MANIFEST(0);

static const uint8_t constant[64] = {1}; /* not volatile: GCC would put it into .data */

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    volatile uint8_t *rodata = (volatile uint8_t *)(uintptr_t)constant;
    __asm__("" : "+r"(rodata)); /* hides the address from the compiler */
    printf("write_rodata: writing to %p\n", (void *)(uintptr_t)rodata);
    *rodata = 2;
    printf("NOT STOPPED\n");
    return 99;
}
