/* Sections that the linker script does not name, with and without bytes in the file. The heap is
 * filled to its last byte, and no byte of these sections may change. Ends with 0, or with the
 * number of wrong bytes. */
#include <tender/guest.h>

TENDER_MANIFEST(0);

#define BYTES 200000

__attribute__((section("own_data"))) static volatile int data = 11;
__attribute__((section("own_zeroes,\"aw\",@nobits#"))) static volatile uint8_t zeroes[BYTES];
__attribute__((section(".noinit,\"aw\",@nobits#"))) static volatile uint8_t noinit[BYTES];
__attribute__((section("own_constants"))) static const int constants[2] = {3, 4};
static volatile uint8_t large[4 * BYTES]; /* .lbss with -mcmodel=medium */

static void fill_the_heap(void)
{
    for (size_t bytes = (size_t)1 << 20; bytes; bytes /= 2) {
        uint8_t *piece;
        while ((piece = guest_alloc(bytes))) {
            memset(piece, 0xaa, bytes);
        }
    }
}

int main(int argc, char **argv)
{
    (void)argv;
    int wrong = 0;
    fill_the_heap();
    for (size_t i = 0; i < BYTES; i++) {
        wrong += zeroes[i] != 0;
        wrong += noinit[i] != 0;
        wrong += large[4 * i] != 0;
    }
    wrong += data != 11;
    wrong += constants[argc & 1] != 3 + (argc & 1);
    return wrong > 99 ? 99 : wrong;
}
