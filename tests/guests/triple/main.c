/* Causes a triple fault: an IDT without entries, then an invalid opcode. Only the host can end this
 * guest. */
#include <tender/guest.h>

TENDER_MANIFEST(0);

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    static const struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) no_table = {0, 0};
    printf("triple: faulting\n");
    __asm__ volatile("lidt %0\n\tud2" : : "m"(no_table));
    printf("NOT STOPPED\n");
    return 99;
}
