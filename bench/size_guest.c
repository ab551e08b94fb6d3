/*
 * The guest of `python bench size`. It prints "ready" and ends. It contains PADDING_BYTES of constants that
 * it never reads, because most of a large unikernel is not read either before it is ready.
 */
#include "guest_world.h"

WORLD_MANIFEST(0);

#define TEXT_OF(value) #value
#define TEXT(value)    TEXT_OF(value)

__asm__(".pushsection .rodata.padding, \"aR\", @progbits\n"
        ".balign 4096\n"
        ".fill " TEXT(PADDING_BYTES) " / 8, 8, 0x6465646461706465\n" /* so that no page is all zero */
                                     ".popsection\n");

WORLD_MAIN
{
    (void)WORLD_CMDLINE;
    say("ready\n");
    return 0;
}
