/* Waits for a day in one poll: prints "ready", then sleeps. Status 0 and "woke" if the day ever ends. */
#include <tender/guest.h>

TENDER_MANIFEST(0);

#define DAY_NS 86400000000000ULL

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    printf("ready\n");
    poll_wait(DAY_NS, NULL);
    printf("woke\n");
    return 0;
}
