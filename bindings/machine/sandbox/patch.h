/*
 * Hypercalls without a trap: the call sites at which an image makes them are turned into jumps, once an
 * image, in the template, before it is sealed.
 *
 * In every image looked at, a call site is
 *
 *   ba 0N 05 00 00   mov $0x50N,%edx        becomes   e9 ........   jmp trampoline
 *   ef               out %eax,(%dx)                   ef            stays: who jumps here, traps as before
 *
 * and its trampoline, TENDER_TRAMPOLINE_BYTES in the guest's low memory (layout.h),
 *
 *   +0   ba ........            mov $trampoline,%edx   edx names the trampoline, eax is the argument's gpa
 *
 *   +5   ff 24 25 00 ff 0f 00   jmp *TENDER_ENTRY_GPA  the program, which gives edx back as 0x50N
 *
 *   +12  u32                    where to go on: the address behind the `out`
 *
 *   +16  u32                    N, 1 .. 8
 *
 *   +20  cc ...
 *
 * A call site stays as it is where there is no space for its trampoline, or where that is further away than a
 * jump reaches. It traps then, and the program emulates the `out`. Bytes that look like a call site are taken
 * for one, even within another instruction or in data among the code. Six bytes, of which five are fixed, do
 * not come about by chance, and a guest that contains them on purpose changes only itself. The rule: nothing
 * outside of the segments' file bytes and the space for trampolines is written.
 */
#ifndef TENDER_SANDBOX_PATCH_H
#define TENDER_SANDBOX_PATCH_H

#include <stddef.h>

#include "elf_image.h"
#include "layout.h"

#define CALL_SITE_BYTES 6
#define TRAMPOLINES_MAX ((TENDER_TRAMPOLINES_END - TENDER_TRAMPOLINES_GPA) / TENDER_TRAMPOLINE_BYTES)

/* Space for trampolines; the caller's, `used` is 0 at first. */
struct patch_trampolines {
    uint8_t *at; /* the first trampoline's bytes, as the host sees them */
    gpa_t gpa;   /* and as the guest will */
    uint32_t max;
    uint32_t used;
};

/*
 * Patches every call site that lies wholly within `code`, `bytes` of an executable segment that the guest
 * will see at `gpa`, below HVT_MEM_MAX. Returns how many; each took one trampoline.
 */
uint32_t patch_code(uint8_t *code, gpa_t gpa, size_t bytes, struct patch_trampolines *trampolines);

/* Patches the executable segments of `image` in `template`, the mapped memfd `template_fd`. Returns how many
 * call sites were patched. Holes of the memfd stay holes. */
uint32_t patch_template(const struct elf_image *image, uint8_t *template, int template_fd);

/* Patches the executable segments of `image` in `template_fd`, a memfd with the segments loaded and not yet
 * sealed. Returns how many call sites were patched, or -errno; the template is then good for nothing. */
int64_t patch_call_sites(const struct elf_image *image, int template_fd);

/* Gives the text of a patched template back as it was, for a copy that another backend is to run. 0 or
 * -errno.
 */
int unpatch_call_sites(const struct elf_image *image, int template_fd);

#endif
