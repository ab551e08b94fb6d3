/*
 * hello, without our note: no gate page, every hypercall an `out`. This symbol stands where the library's
 * would, so the linker leaves extension.c out.
 */
extern const char tender_extension_note[];
const char tender_extension_note[] = "";

#include "../../../guest_kernel/examples/hello.c"
