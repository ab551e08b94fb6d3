/*
 * Four devices in mixed order: service0 (handle 1), storage0 (2), service1 (3), storage1 (4).
 * Prints the manifest, one line per device:
 *
 *     service0 handle 1 net mac 02:... mtu 1500
 *     storage0 handle 2 block capacity N block_size N
 *
 * then "unknown -1" (no such name) and "wrong type -1" (service0 as a block device). Writes the
 * name of each storage to its block 0, reads both names back ("storage0 holds storage0"), polls
 * once ("ready N set 0xS") and ends with 0.
 */
#include <tender/guest.h>

TENDER_MANIFEST(4, TENDER_NET("service0"), TENDER_BLOCK("storage0"), TENDER_NET("service1"),
                TENDER_BLOCK("storage1"));

static char block[32768] __attribute__((aligned(16)));

static void print_entry(uint32_t handle, const struct mft_entry *entry)
{
    if (entry->type == MFT_NET_BASIC) {
        const uint8_t *mac = entry->u.net.mac;
        printf("%s handle %u net mac %02x:%02x:%02x:%02x:%02x:%02x mtu %u\n", entry->name, handle, mac[0],
               mac[1], mac[2], mac[3], mac[4], mac[5], entry->u.net.mtu);
    } else {
        printf("%s handle %u block capacity %lu block_size %u\n", entry->name, handle,
               entry->u.block.capacity, entry->u.block.block_size);
    }
}

static void storage_write_name(const char *name)
{
    struct block_device disk;
    if (block_open(name, &disk) != GUEST_OK) {
        panic("nets_and_blocks: no block device %s", name);
    }
    memset(block, 0, sizeof(block));
    memcpy(block, name, strlen(name));
    if (block_write(&disk, 0, block, disk.block_size) != GUEST_OK) {
        panic("nets_and_blocks: %s refuses a write", name);
    }
}

static void storage_print_name(const char *name)
{
    struct block_device disk;
    if (block_open(name, &disk) != GUEST_OK || block_read(&disk, 0, block, disk.block_size) != GUEST_OK) {
        panic("nets_and_blocks: %s refuses a read", name);
    }
    printf("%s holds %.67s\n", name, block);
}

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    const struct mft *manifest = guest_manifest();
    for (uint32_t handle = 1; handle < manifest->entries; handle++) {
        print_entry(handle, &manifest->e[handle]);
    }
    printf("unknown %d\n", manifest_find("service2", MFT_NET_BASIC));
    printf("wrong type %d\n", manifest_find("service0", MFT_BLOCK_BASIC));
    storage_write_name("storage0");
    storage_write_name("storage1");
    storage_print_name("storage0");
    storage_print_name("storage1");
    uint64_t ready_set;
    int ready = poll_wait(0, &ready_set);
    printf("ready %d set 0x%lx\n", ready, ready_set);
    return 0;
}
