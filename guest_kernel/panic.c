/* Ends a guest that found an error: prints a message, then exits with status 255 and no trap cookie. */
#include "kernel.h"

_Noreturn void panic(const char *format, ...)
{
    va_list args;
    printf("ABORT: ");
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    console_write("\n", 1);
    guest_exit(HVT_EXIT_ABORT);
}
