/*
 * Reads the last page of storage again and again, by an `out` that is not a call site: in the
 * sandbox each comes as a signal. Prints "block_trap: reads". Once the host refuses, prints
 * "block_trap: refused 3" and ends with 0. Any other answer: status 1.
 */
#include <tender/guest.h>

#include "gate.h"

TENDER_MANIFEST(1, TENDER_BLOCK("storage"));

static uint8_t data[4096];

static int32_t read_by_trap(const struct block_device *disk)
{
    static struct hvt_block_read call;
    call =
        (struct hvt_block_read){disk->handle, disk->capacity - sizeof(data), gpa_of(data), sizeof(data), 77};
    __asm__ volatile("mov %[port], %%edx\n\tnop\n\tout %%eax, (%%dx)"
                     :
                     : "a"((uint32_t)gpa_of(&call)), [port] "i"(HVT_PORT_BASE + HVT_HYPERCALL_BLOCK_READ)
                     : "edx", "memory");
    return call.ret;
}

int main(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    struct block_device disk;
    if (block_open("storage", &disk) != GUEST_OK) {
        panic("block_trap: no block device storage");
    }
    int32_t result = GUEST_OK;
    for (unsigned i = 0; result == GUEST_OK; i++) {
        result = read_by_trap(&disk);
        if (i == 1) { /* the second was a copy */
            printf("block_trap: reads\n");
        }
    }
    printf("block_trap: refused %d\n", (int)result);
    return result != GUEST_EUNSPEC;
}
