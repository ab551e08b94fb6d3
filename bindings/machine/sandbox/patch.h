/*
 * Hypercalls without a trap: the call sites of an image, where it makes hypercalls, are turned into
 * jumps. This is done once per image, in the template, before it is sealed.
 *
 * In every image examined so far, a call site is
 *
 *   ba 0N 05 00 00   mov $0x50N,%edx        becomes   e9 ........   jmp trampoline
 *   ef               out %eax,(%dx)                   ef            stays: a jump to it traps as before
 *
 * and its trampoline, TENDER_TRAMPOLINE_BYTES in the guest's low memory (layout.h),
 *
 *   +0   ba ........            mov $trampoline,%edx   edx names the trampoline, eax is the argument's gpa
 *
 *   +5   ff 24 25 00 ff 0f 00   jmp *TENDER_ENTRY_GPA  the program, which restores edx to 0x50N
 *
 *   +12  u32                    where execution continues: the address after the `out`
 *
 *   +16  u32                    N, 1 .. 8
 *
 *   +20  cc ...
 *
 * A call site stays as it is if there is no space for its trampoline, or if the trampoline is further
 * away than a jump reaches. It then traps, and the program emulates the `out`. Bytes that look like a
 * call site are treated as one, even inside another instruction or in data between the code. Six bytes,
 * five of them fixed, do not occur by chance, and a guest that contains them on purpose changes only
 * itself. The rule: nothing outside of the segments' file bytes and the space for trampolines is written.
 */
#ifndef TENDER_SANDBOX_PATCH_H
#define TENDER_SANDBOX_PATCH_H

#include <stddef.h>

#include "elf_image.h"
#include "layout.h"

#define CALL_SITE_BYTES 6
#define TRAMPOLINES_MAX ((TENDER_TRAMPOLINES_END - TENDER_TRAMPOLINES_GPA) / TENDER_TRAMPOLINE_BYTES)

/* Space for trampolines. It belongs to the caller; `used` must be 0 at first. */
struct patch_trampolines {
    uint8_t *at; /* the first trampoline's bytes, as the host sees them */
    gpa_t gpa;   /* the same place as the guest sees it */
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
 * sealed. Returns how many call sites were patched, or -errno; after an error the template must not be
 * used. */
int64_t patch_call_sites(const struct elf_image *image, int template_fd);

/* Restores the text of a patched template, for a copy that another backend will run. 0 or -errno. */
int unpatch_call_sites(const struct elf_image *image, int template_fd);

#endif
