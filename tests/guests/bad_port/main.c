/*
 * Accesses an I/O port that is not a hypercall. The host must stop it. Status 99 if the host does
 * not.
 *
 *     bad_port [--port=0x3f8] [--bits=8|16|32] [--in]
 */
#include <tender/guest.h>

TENDER_MANIFEST(0);

int main(int argc, char **argv)
{
    uint64_t port = 0x3f8, bits = 32;
    number_parse(args_value(argc, argv, "--port="), &port);
    number_parse(args_value(argc, argv, "--bits="), &bits);
    bool in = args_has(argc, argv, "--in");
    uint16_t dx = (uint16_t)port;
    uint32_t eax = 0;
    printf("bad_port: %lu-bit %s port 0x%x\n", bits, in ? "in from" : "out to", dx);
    if (bits == 8 && in) {
        __asm__ volatile("in %%dx, %%al" : "+a"(eax) : "d"(dx) : "memory");
    } else if (bits == 8) {
        __asm__ volatile("out %%al, %%dx" : : "a"(eax), "d"(dx) : "memory");
    } else if (bits == 16 && in) {
        __asm__ volatile("in %%dx, %%ax" : "+a"(eax) : "d"(dx) : "memory");
    } else if (bits == 16) {
        __asm__ volatile("out %%ax, %%dx" : : "a"(eax), "d"(dx) : "memory");
    } else if (in) {
        __asm__ volatile("in %%dx, %%eax" : "+a"(eax) : "d"(dx) : "memory");
    } else {
        __asm__ volatile("out %%eax, %%dx" : : "a"(eax), "d"(dx) : "memory");
    }
    printf("NOT STOPPED\n");
    return 99;
}
