/*
 * Makes a hypercall that does not exist, with a valid structure (64 zero bytes). The host must stop
 * it. Status 99 if the host does not.
 *
 *     bad_hypercall [--number=0]      also 4 to 7, whose devices this image does not declare; 9 and more
 */
#include <tender/guest.h>

TENDER_MANIFEST(0);

int main(int argc, char **argv)
{
    static uint8_t structure[64] __attribute__((aligned(16)));
    uint64_t number = 0;
    number_parse(args_value(argc, argv, "--number="), &number);
    uint16_t port = (uint16_t)(HVT_PORT_BASE + number);
    printf("bad_hypercall: number %lu\n", number);
    __asm__ volatile("out %%eax, %%dx" : : "a"((uint32_t)(uintptr_t)structure), "d"(port) : "memory");
    printf("NOT STOPPED\n");
    return 99;
}
