/*
 * The guest of `python bench size`: says "ready" and ends, with PADDING_BYTES of constants behind it that it
 * never looks at, as most of a large unikernel is not looked at before it is up.
 */
#include "guest_world.h"

WORLD_MANIFEST(0);

#define TEXT_OF(value) #value
#define TEXT(value)    TEXT_OF(value)

__asm__(".pushsection .rodata.padding, \"aR\", @progbits\n"
        ".balign 4096\n"
        ".fill " TEXT(PADDING_BYTES) " / 8, 8, 0x6465646461706465\n" /* no page of it is empty */
                                     ".popsection\n");

WORLD_MAIN
{
    (void)WORLD_CMDLINE;
    say("ready\n");
    return 0;
}
