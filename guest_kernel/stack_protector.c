/* In a file of its own: it is linked into a unikernel that is compiled with -fstack-protector, and into no
 * other. */
#include "kernel.h"

_Noreturn void __stack_chk_fail(void)
{
    panic("stack smashed: a function wrote past the end of an array of its own");
}
