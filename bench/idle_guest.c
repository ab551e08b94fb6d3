/*
 * The guest of `python bench memory` and `density`. It prints "ready" and waits for ever. It has no device.
 * guest_world.h tells how it is built.
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
