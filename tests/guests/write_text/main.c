/* Writes to its own code. The host must stop it. Status 99 if the host does not. */
#include <tender/guest.h>

TENDER_MANIFEST(0);

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    volatile uint8_t *text = (volatile uint8_t *)(uintptr_t)&guest_alloc;
    printf("write_text: writing to %p\n", (void *)(uintptr_t)text);
    *text = 0xcc;
    printf("NOT STOPPED\n");
    return 99;
}
