/*
 * Runs code that is in its data. The hvt ABI has no execute permission in the guest's page tables,
 * so this works today (status 0). A backend that enforces more stops it.
 */
#include <tender/guest.h>

TENDER_MANIFEST(0);

static uint8_t code[] = {0xb8, 7, 0, 0, 0, 0xc3}; /* mov $7, %eax; ret */

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    int (*function)(void) = (int (*)(void))(uintptr_t)code;
    __asm__("" : "+r"(function));
    int result = function();
    printf("exec_data: code in data ran and returned %d\n", result);
    return result == 7 ? 0 : 1;
}
