/*
 * The guest of `tender bench memory`: says "ready" and waits for ever, without a device. Solo5's public API
 * alone, built as solo5_net.c is.
 */
#include <stddef.h>
#include <stdint.h>

#include "solo5.h"

int solo5_app_main(const struct solo5_start_info *start)
{
    (void)start;
    solo5_console_write("ready\n", 6);
    for (;;)
        solo5_yield(solo5_clock_monotonic() + 3600000000000, NULL);
}
