/*
 * Writes a pattern to a block device, reads it back, and checks that the device refuses wrong
 * requests.
 *
 *     disk.elf [--verify | --read-only]      device "storage"; without an option its content is destroyed
 *
 * --verify only reads, and compares with what an earlier run wrote. --read-only expects that every write
 * is refused and every read works; it does not check the content. The exit status is 0 if every
 * check passed. Otherwise it is 1, after a line "disk: FAILED ...".
 *
 * On a device of up to 4096 blocks, every block is visited. On a larger one, every k-th block is
 * visited, and always the first and the last.
 */
#include <tender/guest.h>

TENDER_MANIFEST(1, TENDER_BLOCK("storage"));

#define VISITS_MAX      4096
#define BLOCK_BYTES_MAX 32768

static struct block_device disk;
static uint64_t blocks;
static uint8_t block_data[BLOCK_BYTES_MAX] __attribute__((aligned(4096)));
static uint8_t expected[BLOCK_BYTES_MAX] __attribute__((aligned(4096)));

#define FAIL(...) (printf("disk: FAILED " __VA_ARGS__), printf("\n"), guest_exit(1))

/* Returns the next block to visit after `block`, or `blocks` at the end. */
static uint64_t block_after(uint64_t block)
{
    uint64_t step = blocks <= VISITS_MAX ? 1 : blocks / (VISITS_MAX - 1) + 1;
    bool passes_last = block != blocks - 1 && step > blocks - 1 - block;
    return passes_last ? blocks - 1 : block == blocks - 1 ? blocks : block + step;
}

/*
 * Each block has bytes of its own, so that a block in a wrong place is detected. The generator is
 * xorshift64*, and its seed is the block's number.
 */
static void pattern_fill(uint8_t *to, uint64_t block)
{
    uint64_t state = (block + 1) * 0x9e3779b97f4a7c15;
    for (uint32_t i = 0; i < disk.block_size; i++) {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        to[i] = (uint8_t)(state * 0x2545f4914f6cdd1d >> 56);
    }
}

static void write_all(void)
{
    uint64_t visited = 0;
    for (uint64_t block = 0; block < blocks; block = block_after(block)) {
        pattern_fill(block_data, block);
        enum guest_result result = block_write(&disk, block * disk.block_size, block_data, disk.block_size);
        if (result != GUEST_OK) {
            FAIL("block %lu: write refused with %d", block, (int)result);
        }
        visited++;
    }
    printf("disk: wrote %lu blocks\n", visited);
}

static void read_block(uint64_t block)
{
    enum guest_result result = block_read(&disk, block * disk.block_size, block_data, disk.block_size);
    if (result != GUEST_OK) {
        FAIL("block %lu: read refused with %d", block, (int)result);
    }
}

static void verify_all(void)
{
    uint64_t visited = 0;
    for (uint64_t block = 0; block < blocks; block = block_after(block)) {
        pattern_fill(expected, block);
        memset(block_data, 0xa5, disk.block_size);
        read_block(block);
        for (uint32_t i = 0; i < disk.block_size; i++) {
            if (block_data[i] != expected[i]) {
                FAIL("block %lu offset %u: expected 0x%02x got 0x%02x", block, i, expected[i], block_data[i]);
            }
        }
        visited++;
    }
    printf("disk: verified %lu blocks\n", visited);
}

static void expect_refused(const char *what, enum guest_result result)
{
    if (result == GUEST_OK) {
        FAIL("%s: accepted", what);
    }
}

static void check_out_of_range(bool writes)
{
    uint32_t size = disk.block_size;
    uint64_t end = blocks * size;
    uint64_t wrapping = 0 - (uint64_t)size; /* offset + length is 0 */
    expect_refused("read past the end", block_read(&disk, end, block_data, size));
    expect_refused("read across the end", block_read(&disk, end - size, block_data, 2 * (size_t)size));
    expect_refused("read that wraps", block_read(&disk, wrapping, block_data, size));
    expect_refused("read of half a block", block_read(&disk, 0, block_data, size / 2));
    expect_refused("read at half a block", block_read(&disk, size / 2, block_data, size));
    if (writes) {
        expect_refused("write past the end", block_write(&disk, end, block_data, size));
        expect_refused("write across the end", block_write(&disk, end - size, block_data, 2 * (size_t)size));
        expect_refused("write that wraps", block_write(&disk, wrapping, block_data, size));
    }
    printf("disk: out of range is refused\n");
}

/* Writes back the bytes that it read, so that a device that wrongly accepts a write keeps its content. */
static void check_read_only(void)
{
    uint64_t visited = 0;
    for (uint64_t block = 0; block < blocks; block = block_after(block)) {
        read_block(block);
        enum guest_result result = block_write(&disk, block * disk.block_size, block_data, disk.block_size);
        if (result == GUEST_OK) {
            FAIL("block %lu: a write was accepted, expected a read-only device", block);
        }
        visited++;
    }
    printf("disk: read %lu blocks, writes are refused\n", visited);
}

int main(int argc, char **argv)
{
    if (block_open("storage", &disk) != GUEST_OK) {
        panic("disk: no block device storage");
    }
    blocks = disk.capacity / disk.block_size;
    printf("disk: storage capacity %lu block size %u blocks %lu\n", disk.capacity, disk.block_size, blocks);
    if (blocks == 0 || disk.block_size > BLOCK_BYTES_MAX) {
        FAIL("block size %u, blocks %lu; expected at most %d and at least 1", disk.block_size, blocks,
             BLOCK_BYTES_MAX);
    }
    bool read_only = args_has(argc, argv, "--read-only");
    bool verify_only = args_has(argc, argv, "--verify");
    if (read_only) {
        check_read_only();
    } else {
        if (!verify_only) {
            write_all();
        }
        verify_all();
    }
    check_out_of_range(!read_only && !verify_only);
    printf("disk: OK\n");
    return 0;
}
