/*
 *     block_sparse
 *
 * Reads 512 bytes of the device storage at each 2 MiB, twice. Each of these places has its own page
 * table where the disk is mapped. Prints "read N" and waits to be stopped. Status 1 if a read
 * fails.
 */
#include <tender/guest.h>

TENDER_MANIFEST(1, TENDER_BLOCK("storage"));

#define STEP (2u << 20)

static uint8_t data[512];

int main(int argc, char **argv)
{
    struct block_device disk;
    uint64_t reads = 0;
    (void)argc;
    (void)argv;
    if (block_open("storage", &disk) != GUEST_OK) {
        panic("block_sparse: no block device storage");
    }
    for (uint64_t offset = 0; offset < disk.capacity; offset += STEP) {
        for (int i = 0; i < 2; i++) {
            if (block_read(&disk, offset, data, sizeof data) != GUEST_OK) {
                return 1;
            }
            reads++;
        }
    }
    printf("read %lu\n", reads);
    for (;;) {
        poll_wait(1000000000, 0);
    }
}
