/*
 * FS base can be written with WRMSR, %fs then reads through it, and it survives hypercalls.
 * MirageOS and Solo5's bindings use this for thread-local storage. Prints "tls_like: OK".
 */
#include <tender/guest.h>

TENDER_MANIFEST(0);

#define MSR_FS_BASE 0xc0000100

static void fs_base_write(const void *base)
{
    uint64_t value = (uint64_t)(uintptr_t)base;
    __asm__ volatile("wrmsr"
                     :
                     : "c"(MSR_FS_BASE), "a"((uint32_t)value), "d"((uint32_t)(value >> 32))
                     : "memory");
}

static uint64_t fs_read(void)
{
    uint64_t value;
    __asm__ volatile("mov %%fs:8, %0" : "=r"(value));
    return value;
}

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    static uint64_t blocks[2][2] = {{0, 0x1111}, {0, 0x2222}};
    for (unsigned round = 0; round < 100; round++) {
        fs_base_write(blocks[round % 2]);
        poll_wait(0, NULL);
        uint64_t expected = blocks[round % 2][1];
        if (fs_read() != expected) {
            printf("tls_like: FAILED round %u: expected 0x%lx got 0x%lx\n", round, expected, fs_read());
            return 1;
        }
    }
    printf("tls_like: OK\n");
    return 0;
}
