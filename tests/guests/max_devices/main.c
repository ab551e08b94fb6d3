/*
 * A full manifest: 63 block devices, disk1 to disk63, whose handles are their numbers. Prints for
 * each device
 *     disk1 handle 1 capacity N block_size N
 * and reads its first block. "max_devices: OK" and status 0, or status 1.
 */
#include <tender/guest.h>

#define D(n) TENDER_BLOCK("disk" #n)
TENDER_MANIFEST(63, D(1), D(2), D(3), D(4), D(5), D(6), D(7), D(8), D(9), D(10), D(11), D(12), D(13), D(14),
                D(15), D(16), D(17), D(18), D(19), D(20), D(21), D(22), D(23), D(24), D(25), D(26), D(27),
                D(28), D(29), D(30), D(31), D(32), D(33), D(34), D(35), D(36), D(37), D(38), D(39), D(40),
                D(41), D(42), D(43), D(44), D(45), D(46), D(47), D(48), D(49), D(50), D(51), D(52), D(53),
                D(54), D(55), D(56), D(57), D(58), D(59), D(60), D(61), D(62), D(63));

static uint8_t block[32768];

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    for (unsigned i = 1; i <= 63; i++) {
        char name[16];
        struct block_device disk;
        snprintf(name, sizeof(name), "disk%u", i);
        if (block_open(name, &disk) != GUEST_OK || disk.handle != i) {
            printf("max_devices: FAILED %s is not there or has another handle\n", name);
            return 1;
        }
        printf("%s handle %lu capacity %lu block_size %u\n", name, disk.handle, disk.capacity,
               disk.block_size);
        if (block_read(&disk, 0, block, disk.block_size) != GUEST_OK) {
            printf("max_devices: FAILED %s cannot be read\n", name);
            return 1;
        }
    }
    printf("max_devices: OK\n");
    return 0;
}
