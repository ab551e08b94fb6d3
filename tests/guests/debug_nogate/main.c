/*
 * debug, without our note: no gate page, every hypercall is an `out`. This symbol replaces the
 * library's symbol, so the linker leaves extension.c out.
 */
extern const char tender_extension_note[];
const char tender_extension_note[] = "";

#include "../debug/main.c"
