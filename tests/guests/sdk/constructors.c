/* Constructors run before main(), the one with the lower priority first. Destructors run when
 * main() returns, in the reverse order. Prints "first second main last-but-one last", ends with 0. */
#include <tender/guest.h>

TENDER_MANIFEST(0);

__attribute__((constructor(201))) static void second(void)
{
    printf("second ");
}
__attribute__((constructor(200))) static void first(void)
{
    printf("first ");
}
__attribute__((destructor(201))) static void last_but_one(void)
{
    printf("last-but-one ");
}
__attribute__((destructor(200))) static void last(void)
{
    printf("last\n");
}

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    printf("main ");
    return 0;
}
