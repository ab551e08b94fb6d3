/* Never ends by itself and never exits to the host: prints "ready", then loops. For time limits and
 * signals. */
#include <tender/guest.h>

TENDER_MANIFEST(0);

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    printf("ready\n");
    for (;;) {
        __asm__ volatile("pause");
    }
}
