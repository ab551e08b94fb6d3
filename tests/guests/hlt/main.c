/* Executes HLT, after which nothing can wake this CPU. The host must stop it. Status 99 if it goes on. */
#include <tender/guest.h>

TENDER_MANIFEST(0);

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    printf("hlt: halting\n");
    __asm__ volatile("hlt");
    printf("NOT STOPPED\n");
    return 99;
}
