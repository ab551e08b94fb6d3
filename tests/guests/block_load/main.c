/*
 *     block_load [--seed=N] [--ops=N | --forever] [--batch] [--errors] [--read-only]
 *
 * Makes random requests of random sizes to storage, and compares them with a copy of the disk in
 * memory. At the end prints a line
 *
 *     load: OK crc 0x12345678 errors 0 flush 0
 *
 * with the copy's CRC-32 (as zlib computes it), the number of requests that the host refused, and
 * the result of the last flush (9: there was no flush). Status 0, or 1 after a line "load: FAILED
 * ...". --forever prints "load: runs" once the load runs.
 *
 *     --batch      makes batches of several requests, too, and flushes
 *     --errors     counts refused requests. The content of a refused range is unknown until it is read again,
 *                  and zeros in place of written bytes count as refused: the file was truncated there
 *     --read-only  only reads
 */
#include <tender/guest.h>

TENDER_MANIFEST(1, TENDER_BLOCK("storage"));

#define SECTORS_MAX 4096
#define SINGLE_MAX  (256u << 10)
#define BATCH_MAX   24
#define BATCHED_MAX (16u << 10) /* bytes of one request */
#define FLUSH_NONE  9

static struct block_device disk;
static uint8_t *model;
static bool known[SECTORS_MAX];
static uint8_t single[SINGLE_MAX] __attribute__((aligned(4096)));
static uint8_t batched[BATCH_MAX][BATCHED_MAX] __attribute__((aligned(4096)));
static struct tender_block_request requests[BATCH_MAX];
static bool errors_expected, read_only;
static uint64_t errors, state = 88172645463325252;
static int flushed = FLUSH_NONE;

#define FAIL(...) (printf("load: FAILED " __VA_ARGS__), printf("\n"), guest_exit(1))

static uint64_t random_below(uint64_t end)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % end;
}

static void fill(uint8_t *data, uint64_t len)
{
    uint64_t word = random_below(UINT64_MAX) | 1; /* never all zeros */
    for (uint64_t i = 0; i < len; i += sizeof(word)) {
        memcpy(data + i, &word, sizeof(word));
        word = word * 6364136223846793005 + 1442695040888963407;
    }
}

/* Whether the file was truncated here and grew again: each byte is that of `was`, or zero. */
static bool is_cut(const uint8_t *data, const uint8_t *was, uint32_t len)
{
    bool cut = true;
    for (uint32_t i = 0; i < len; i++) {
        cut &= data[i] == was[i] || data[i] == 0;
    }
    return cut;
}

/* Chooses a range of whole blocks, often a small one. */
static void choose(uint64_t max, uint64_t *offset, uint64_t *len)
{
    uint64_t blocks = disk.capacity / disk.block_size, most = max / disk.block_size;
    uint64_t count = 1 + random_below(random_below(4) ? 8 : most);
    if (count > most) {
        count = most;
    }
    if (count > blocks) {
        count = blocks;
    }
    *offset = random_below(blocks - count + 1) * disk.block_size;
    *len = count * disk.block_size;
}

static void account_read(uint64_t offset, const uint8_t *data, uint64_t len)
{
    uint32_t size = disk.block_size;
    for (uint64_t at = 0; at < len; at += size) {
        uint64_t sector = (offset + at) / size;
        if (known[sector] && memcmp(data + at, model + offset + at, size) != 0) {
            if (!errors_expected || !is_cut(data + at, model + offset + at, size)) {
                FAIL("block %lu: read other than what was written", sector);
            }
            errors++;
        }
        memcpy(model + offset + at, data + at, size);
        known[sector] = true;
    }
}

static void account_write(uint64_t offset, const uint8_t *data, uint64_t len, bool done)
{
    if (done) {
        memcpy(model + offset, data, len);
    }
    for (uint64_t at = 0; at < len; at += disk.block_size) {
        known[(offset + at) / disk.block_size] = done;
    }
}

static void account(bool writing, uint64_t offset, const uint8_t *data, uint64_t len, int32_t result)
{
    if (result != GUEST_OK && (!errors_expected || result != GUEST_EUNSPEC)) {
        FAIL("%s of %lu bytes at %lu: %d", writing ? "write" : "read", len, offset, (int)result);
    }
    errors += result != GUEST_OK;
    if (writing) {
        account_write(offset, data, len, result == GUEST_OK);
    } else if (result == GUEST_OK) {
        account_read(offset, data, len);
    }
}

static void do_single(void)
{
    uint64_t offset, len;
    bool writing = !read_only && random_below(2);
    choose(SINGLE_MAX, &offset, &len);
    if (writing) {
        fill(single, len);
        account(true, offset, single, len, (int32_t)block_write(&disk, offset, single, len));
    } else {
        memset(single, 0xa5, len);
        account(false, offset, single, len, (int32_t)block_read(&disk, offset, single, len));
    }
}

static void do_batch(void)
{
    unsigned count = 1 + (unsigned)random_below(BATCH_MAX);
    for (unsigned i = 0; i < count; i++) {
        uint64_t offset, len, kind = read_only ? 1 : random_below(16);
        choose(BATCHED_MAX, &offset, &len);
        requests[i] = (struct tender_block_request){
            .op = kind == 0  ? TENDER_BLOCK_FLUSH
                  : kind % 2 ? TENDER_BLOCK_READ
                             : TENDER_BLOCK_WRITE,
            .handle = disk.handle,
            .offset = offset,
            .data = (uintptr_t)batched[i],
            .len = len,
        };
        if (requests[i].op == TENDER_BLOCK_WRITE) {
            fill(batched[i], len);
        } else {
            memset(batched[i], 0xa5, len);
        }
    }
    (void)block_submit(requests, count);
    for (unsigned i = 0; i < count; i++) {
        if (requests[i].op == TENDER_BLOCK_FLUSH) {
            flushed = requests[i].ret;
        } else {
            account(requests[i].op == TENDER_BLOCK_WRITE, requests[i].offset, batched[i], requests[i].len,
                    requests[i].ret);
        }
    }
}

static void check_crooked_batch(void)
{
    for (unsigned i = 0; i < 3; i++) {
        requests[i] = (struct tender_block_request){.op = TENDER_BLOCK_READ,
                                                    .handle = disk.handle,
                                                    .data = (uintptr_t)single,
                                                    .len = disk.block_size};
    }
    requests[1].len--;
    enum guest_result result = block_submit(requests, 3);
    if (result != GUEST_EINVAL || requests[0].ret != GUEST_AGAIN || requests[1].ret != GUEST_EINVAL ||
        requests[2].ret != GUEST_AGAIN) {
        FAIL("a crooked batch: %d, answers %d %d %d", (int)result, (int)requests[0].ret, (int)requests[1].ret,
             (int)requests[2].ret);
    }
}

static uint32_t crc32(const uint8_t *data, uint64_t len)
{
    uint32_t crc = ~0U;
    for (uint64_t i = 0; i < len; i++) {
        crc ^= data[i];
        for (unsigned bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
        }
    }
    return ~crc;
}

int main(int argc, char **argv)
{
    uint64_t ops = 2000;
    if (block_open("storage", &disk) != GUEST_OK) {
        panic("block_load: no block device storage");
    }
    uint64_t seed = 0;
    (void)number_parse(args_value(argc, argv, "--seed="), &seed);
    (void)number_parse(args_value(argc, argv, "--ops="), &ops);
    bool batch = args_has(argc, argv, "--batch"), forever = args_has(argc, argv, "--forever");
    errors_expected = args_has(argc, argv, "--errors");
    read_only = args_has(argc, argv, "--read-only");
    state += seed * 0x9e3779b97f4a7c15;
    model = guest_calloc(1, disk.capacity);
    if (!model || disk.capacity / disk.block_size > SECTORS_MAX) {
        FAIL("a disk of %lu bytes is too large for this test", disk.capacity);
    }
    bool whole = block_read(&disk, 0, model, disk.capacity) == GUEST_OK;
    if (!whole && !errors_expected) {
        FAIL("the first read");
    }
    memset(known, whole, sizeof(known));
    check_crooked_batch();
    if (forever) {
        printf("load: runs\n");
    }
    for (uint64_t i = 0; i < ops || forever; i++) {
        if (batch && random_below(3) == 0) {
            do_batch();
        } else {
            do_single();
        }
    }
    printf("load: OK crc 0x%08x errors %lu flush %d\n", crc32(model, disk.capacity), errors, flushed);
    return 0;
}
