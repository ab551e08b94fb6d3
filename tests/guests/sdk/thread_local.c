/* Thread-local variables: with a value, without a value, and with an alignment of their own. Ends
 * with 0, or with the line number of the failed check. */
#include <tender/guest.h>

TENDER_MANIFEST(0);

static __thread volatile int with_value = 42;
static __thread volatile int without;
static __thread volatile char page[300] __attribute__((aligned(256)));
static __thread volatile uint8_t odd[3] = {1, 2, 3};

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    if (with_value != 42)
        return __LINE__;
    if (without != 0)
        return __LINE__;
    if ((uintptr_t)page % 256)
        return __LINE__;
    for (size_t i = 0; i < sizeof page; i++)
        if (page[i])
            return __LINE__;
    if (odd[0] != 1 || odd[1] != 2 || odd[2] != 3)
        return __LINE__;
    with_value = without = 7;
    page[0] = 9;
    heap_check(); /* panics if they overlap a header of the heap */
    return odd[2] == 3 && with_value == 7 ? 0 : __LINE__;
}
