/*
 * A minimal guest: it prints a greeting, its arguments, its memory and its clocks.
 *
 *     hello.elf [--status=N] [anything ...]      exit status N, otherwise 0
 */
#include <tender/guest.h>

TENDER_MANIFEST(0);

static void print_arguments(int argc, char **argv)
{
    printf("arguments: %d\n", argc);
    for (int i = 0; i < argc; i++) {
        printf("  argument %d: %s\n", i, argv[i]);
    }
}

static void print_memory(void)
{
    struct heap_stats heap = heap_check();
    printf("memory: %lu MiB, heap %zu KiB free of %zu KiB, stack %d KiB\n", guest_memory_bytes() >> 20,
           heap.free_bytes >> 10, heap.total_bytes >> 10, GUEST_STACK_BYTES >> 10);
}

static void print_clocks(void)
{
    uint64_t wall_ns = clock_wall();
    uint64_t up = clock_monotonic();
    printf("clock: wall %lu.%09lu s, up %lu.%09lu s, counter %lu Hz\n", wall_ns / 1000000000,
           wall_ns % 1000000000, up / 1000000000, up % 1000000000, clock_tsc_hz());
}

int main(int argc, char **argv)
{
    printf("Hello, World\n");
    print_arguments(argc, argv);
    print_memory();
    print_clocks();

    const char *text = args_value(argc, argv, "--status=");
    uint64_t status = 0;
    if (text && !number_parse(text, &status)) {
        panic("hello: --status=%s is not a number", text);
    }
    return (int)(status & 0xff);
}
