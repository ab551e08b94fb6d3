/*
 *     block_edges [--solo5]
 *
 * Makes hypercalls 4 and 5 at the edges of the device storage (handle 1), without the library's own
 * checks. Prints one line for each: "write last block: 0" with the result code (0 OK, 2 EINVAL),
 * followed by " EXPECTED 2" if the ABI requires another result. Status 0 if all results were as
 * expected, otherwise 1. Destroys the first and the last block. --solo5: accepts that solo5-hvt
 * uses only the low 32 bits of a handle.
 */
#include <tender/guest.h>

#include "gate.h"

TENDER_MANIFEST(1, TENDER_BLOCK("storage"));

#define SIZE 512

static uint8_t data[2 * SIZE];
static bool failed;

struct edge {
    const char *name;
    uint64_t handle, offset, len;
    int32_t expected;
};

static void report(const char *what, const struct edge *edge, int32_t result)
{
    bool right = result == edge->expected;
    printf("%s %s: %d", what, edge->name, result);
    if (!right) {
        printf(" EXPECTED %d", edge->expected);
        failed = true;
    }
    printf("\n");
}

static void try_both(const struct edge *edge)
{
    struct hvt_block_write write = {edge->handle, edge->offset, gpa_of(data), edge->len, 77};
    gate_block_write(&write);
    report("write", edge, write.ret);
    struct hvt_block_read read = {edge->handle, edge->offset, gpa_of(data), edge->len, 77};
    gate_block_read(&read);
    report("read", edge, read.ret);
}

int main(int argc, char **argv)
{
    struct block_device disk;
    if (block_open("storage", &disk) != GUEST_OK) {
        panic("block_edges: no block device storage");
    }
    uint64_t end = disk.capacity;
    int32_t high_handle = args_has(argc, argv, "--solo5") ? HVT_R_OK : HVT_R_EINVAL;
    const struct edge edges[] = {
        {"first block", 1, 0, SIZE, HVT_R_OK},
        {"last block", 1, end - SIZE, SIZE, HVT_R_OK},
        {"last byte", 1, end - 1, 1, HVT_R_OK},
        {"nothing", 1, 0, 0, HVT_R_OK},
        {"unaligned", 1, 1, 3, HVT_R_OK},
        {"at the end", 1, end, SIZE, HVT_R_EINVAL},
        {"nothing at the end", 1, end, 0, HVT_R_EINVAL},
        {"across the end", 1, end - SIZE, SIZE + 1, HVT_R_EINVAL},
        {"far behind the end", 1, end + (1ULL << 40), SIZE, HVT_R_EINVAL},
        {"negative offset", 1, 0 - (uint64_t)SIZE, SIZE, HVT_R_EINVAL},
        {"offset 2^63", 1, 1ULL << 63, SIZE, HVT_R_EINVAL},
        {"length 2^63-1", 1, SIZE, (1ULL << 63) - 1, HVT_R_EINVAL},
        {"length 2^63", 1, 0, 1ULL << 63, HVT_R_EINVAL},
        {"length 2^64-1", 1, 1, UINT64_MAX, HVT_R_EINVAL},
        {"handle 0", 0, 0, SIZE, HVT_R_EINVAL},
        {"handle 2", 2, 0, SIZE, HVT_R_EINVAL},
        {"handle 63", 63, 0, SIZE, HVT_R_EINVAL},
        {"handle 64", 64, 0, SIZE, HVT_R_EINVAL},
        {"handle 2^32-1", 0xffffffff, 0, SIZE, HVT_R_EINVAL},
        {"handle 2^64-1", UINT64_MAX, 0, SIZE, HVT_R_EINVAL},
        {"handle 2^32+1", 0x100000001, 0, SIZE, high_handle},
    };
    for (size_t i = 0; i < sizeof(edges) / sizeof(edges[0]); i++) {
        try_both(&edges[i]);
    }
    return failed;
}
