/*
 * Call sites of a hostile image under libFuzzer.
 *
 *   input: u8 number of trampolines that fit, u32 address in pages, then the text of an executable segment.
 *
 * Text and trampolines end where their allocations end, so that a stray access is found. Every
 * changed byte belongs to a call site, every patched call site has exactly one trampoline, and a
 * trampoline continues after the `out` of its call site.
 */
#include <stdlib.h>
#include <string.h>

#include "must.h"
#include "patch.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint32_t pages;
    if (size < 6)
        return 0;
    uint32_t max = data[0] % 33;
    memcpy(&pages, data + 1, sizeof pages);
    data += 5;
    size -= 5;
    gpa_t gpa = 0x100000 + (gpa_t)(pages % 0xffe00) * 4096; /* ends below 4 GiB */
    if (size > 0x10000)
        size = 0x10000;
    uint8_t *code = malloc(size), *space = malloc(max ? max * TENDER_TRAMPOLINE_BYTES : 1);
    MUST(code && space);
    memcpy(code, data, size);
    struct patch_trampolines trampolines = {.at = space, .gpa = TENDER_TRAMPOLINES_GPA, .max = max};
    uint32_t patched = patch_code(code, gpa, size, &trampolines), seen = 0;
    MUST(patched == trampolines.used && patched <= max);
    for (size_t i = 0; i < size; i++) {
        if (code[i] == data[i])
            continue;
        MUST(i + CALL_SITE_BYTES <= size && seen < patched);
        MUST(data[i] == 0xba && code[i] == 0xe9 && data[i + 5] == 0xef && code[i + 5] == 0xef);
        uint32_t back, number, distance;
        memcpy(&back, space + seen * TENDER_TRAMPOLINE_BYTES + 12, sizeof back);
        memcpy(&number, space + seen * TENDER_TRAMPOLINE_BYTES + 16, sizeof number);
        memcpy(&distance, code + i + 1, sizeof distance);
        MUST(back == (uint32_t)(gpa + i + CALL_SITE_BYTES) && number >= 1 && number <= 8);
        MUST((uint32_t)(gpa + i + 5 + distance) ==
             (uint32_t)(trampolines.gpa + seen * TENDER_TRAMPOLINE_BYTES));
        seen++;
        i += CALL_SITE_BYTES - 1;
    }
    MUST(seen == patched);
    free(code);
    free(space);
    return 0;
}
