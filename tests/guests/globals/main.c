/* Checks that data arrives with its content, bss with zeros, constants with theirs, all at the
 * right addresses. Prints "globals: OK". */
#include <tender/guest.h>

TENDER_MANIFEST(0);

static volatile uint64_t data_first = 0x1122334455667788;
static volatile uint8_t data_large[10000] = {[0] = 1, [4096] = 2, [9999] = 3};
static volatile uint8_t bss_large[100000];
static const volatile char constant[] = "constant";
static volatile const char *pointer = constant; /* works only if the link address is the run address */

static const char *failure(void)
{
    if (data_first != 0x1122334455667788 || data_large[0] != 1 || data_large[4096] != 2 ||
        data_large[9999] != 3 || data_large[5000] != 0) {
        return "data is wrong";
    }
    for (size_t i = 0; i < sizeof(bss_large); i++) {
        if (bss_large[i]) {
            return "bss is not zero";
        }
    }
    if (pointer != constant || constant[0] != 'c' || constant[7] != 't') {
        return "a constant is wrong";
    }
    data_first = 1;
    memset((void *)(uintptr_t)bss_large, 0xff, sizeof(bss_large));
    return data_first == 1 && bss_large[99999] == 0xff && data_large[9999] == 3 ? NULL
                                                                                : "a write went astray";
}

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    const char *what = failure();
    printf("globals: %s\n", what ? what : "OK");
    return what ? 1 : 0;
}
