/* Makes one batch whose second request names memory that the guest may not write, 0x1000. Never
 * ends by itself. */
#include <tender/guest.h>

TENDER_MANIFEST(1, TENDER_BLOCK("storage"));

static uint8_t data[512];

int main(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    struct block_device disk;
    if (block_open("storage", &disk) != GUEST_OK) {
        panic("block_batch_wild: no block device storage");
    }
    struct tender_block_request requests[2] = {
        {.op = TENDER_BLOCK_READ, .handle = disk.handle, .data = (uintptr_t)data, .len = 512},
        {.op = TENDER_BLOCK_READ, .handle = disk.handle, .data = 0x1000, .len = 512},
    };
    printf("block_batch_wild: %d\n", (int)block_submit(requests, 2));
    return 0;
}
