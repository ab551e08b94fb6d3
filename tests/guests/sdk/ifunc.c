/* A function whose code is chosen before main(). Ends with 21, which the chosen function returns. */
#include <tender/guest.h>

TENDER_MANIFEST(0);

static int twenty_one(void)
{
    return 21;
}
static int (*choose(void))(void)
{
    return twenty_one;
}
int chosen(void) __attribute__((ifunc("choose")));

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    return chosen();
}
