/* A file of its own, so that only a unikernel that is compiled with -fstack-protector links it. */
#include "kernel.h"

_Noreturn void __stack_chk_fail(void)
{
    panic("stack smashed: a function wrote past the end of an array of its own");
}
