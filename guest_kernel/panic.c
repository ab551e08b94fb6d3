/* The end of a guest that found itself wrong: say what, then status 255 without a trap cookie. */
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
