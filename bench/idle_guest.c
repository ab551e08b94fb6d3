/*
 * The guest of `python bench memory` and `density`: says "ready" and waits for ever, without a device. Built
 * as guest_world.h says.
 */
#include "guest_world.h"

WORLD_MANIFEST(0);

WORLD_MAIN
{
    (void)WORLD_CMDLINE;
    say("ready\n");
    for (;;)
        world_wait();
}
