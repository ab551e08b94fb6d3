/* See patch.h for what a call site and a trampoline are. The search runs over megabytes of text at the first
 * boot of each image, so it examines sixteen positions per step; almost no step finds anything. */
#define _GNU_SOURCE
#include "patch.h"

#include <assert.h>
#include <emmintrin.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "start_state.h"

#define MOV_EDX            0xba /* mov $imm32,%edx */
#define OUT                0xef /* out %eax,(%dx) */
#define JMP_REL32          0xe9
#define INT3               0xcc
#define MOV_BYTES          5
#define STEP               16 /* positions examined per step */
#define TRAMPOLINE_JMP_AT  5
#define TRAMPOLINE_BACK_AT 12
#define TRAMPOLINE_CALL_AT 16

static void put_u32(uint8_t *at, uint32_t value)
{
    memcpy(at, &value, sizeof value);
}

/* Returns the hypercall's number if `code` is a call site, else 0. */
static uint32_t number_of_call_site(const uint8_t code[CALL_SITE_BYTES])
{
    uint32_t port;
    memcpy(&port, code + 1, sizeof port);
    uint32_t call = port - HVT_PORT_BASE;
    bool is_call_site = code[0] == MOV_EDX && code[MOV_BYTES] == OUT && call >= 1 && call < HVT_HYPERCALL_MAX;
    return is_call_site ? call : 0;
}

static void write_trampoline(uint8_t *trampoline, uint32_t trampoline_gpa, uint32_t back_gpa, uint32_t call)
{
    static const uint8_t jump[] = {0xff, 0x24, 0x25}; /* jmp *disp32, absolute */

    memset(trampoline, INT3, TENDER_TRAMPOLINE_BYTES);
    trampoline[0] = MOV_EDX;
    put_u32(trampoline + 1, trampoline_gpa);
    memcpy(trampoline + TRAMPOLINE_JMP_AT, jump, sizeof jump);
    put_u32(trampoline + TRAMPOLINE_JMP_AT + sizeof jump, TENDER_ENTRY_GPA);
    _Static_assert(TRAMPOLINE_JMP_AT + sizeof jump + 4 == TRAMPOLINE_BACK_AT,
                   "code ends where the words begin");
    put_u32(trampoline + TRAMPOLINE_BACK_AT, back_gpa);
    put_u32(trampoline + TRAMPOLINE_CALL_AT, call);
}

/*
 * Patches the bytes at `code` if they are a call site for which there is a trampoline. The written bytes
 * cannot form a new call site, whatever the distance: of e9 .. .. .. .. ef only the middle four can be
 * ba, 0N, 05 or 00.
 */
static bool patch_one(uint8_t *code, gpa_t gpa, struct patch_trampolines *trampolines)
{
    uint32_t call = number_of_call_site(code);
    if (!call || trampolines->used == trampolines->max)
        return false;
    gpa_t trampoline_gpa = trampolines->gpa + (gpa_t)trampolines->used * TENDER_TRAMPOLINE_BYTES;
    int64_t distance = (int64_t)trampoline_gpa - (int64_t)(gpa + MOV_BYTES);
    if (distance < INT32_MIN || distance > INT32_MAX)
        return false; /* addresses do not wrap at 4 GiB in 64-bit mode */
    write_trampoline(trampolines->at + (size_t)trampolines->used * TENDER_TRAMPOLINE_BYTES,
                     (uint32_t)trampoline_gpa, (uint32_t)(gpa + CALL_SITE_BYTES), call);
    code[0] = JMP_REL32;
    put_u32(code + 1, (uint32_t)distance);
    trampolines->used++;
    return true;
}

/* Bit i: a call site's first and last byte are at code + i. Reads STEP + MOV_BYTES bytes. */
static uint32_t candidates(const uint8_t *code)
{
    __m128i first = _mm_loadu_si128((const __m128i *)(const void *)code);
    __m128i last = _mm_loadu_si128((const __m128i *)(const void *)(code + MOV_BYTES));
    __m128i both = _mm_and_si128(_mm_cmpeq_epi8(first, _mm_set1_epi8((char)MOV_EDX)),
                                 _mm_cmpeq_epi8(last, _mm_set1_epi8((char)OUT)));
    return (uint32_t)_mm_movemask_epi8(both);
}

uint32_t patch_code(uint8_t *code, gpa_t gpa, size_t bytes, struct patch_trampolines *trampolines)
{
    const uint32_t used = trampolines->used;
    size_t at = 0;

    assert(gpa <= HVT_MEM_MAX && bytes <= HVT_MEM_MAX - gpa);
    assert(trampolines->gpa + (gpa_t)trampolines->max * TENDER_TRAMPOLINE_BYTES <= HVT_MEM_MAX);
    if (bytes < CALL_SITE_BYTES)
        return 0;
    for (; at + STEP + MOV_BYTES <= bytes; at += STEP)
        for (uint32_t mask = candidates(code + at); mask; mask &= mask - 1) {
            size_t i = at + (size_t)__builtin_ctz(mask);
            patch_one(code + i, gpa + i, trampolines);
        }
    for (; at + CALL_SITE_BYTES <= bytes; at++) /* fewer than STEP places are left */
        patch_one(code + at, gpa + at, trampolines);
    return trampolines->used - used;
}

/* Maps the template's pages that contain [start, start + bytes). NULL with errno. */
static uint8_t *map_template(int template_fd, gpa_t start, size_t bytes)
{
    uint8_t *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, template_fd, (off_t)start);
    return pages == MAP_FAILED ? NULL : pages;
}

/*
 * Searches the code of a segment only where the memfd has pages: reading a hole of a memfd gives it a page. A
 * call site has no zero at either end and is shorter than a page, so none reaches into a hole.
 */
static void patch_segment(const struct elf_segment *s, uint8_t *template, int template_fd,
                          struct patch_trampolines *trampolines)
{
    const uint64_t end = s->vaddr + s->file_bytes;
    const struct byte_source source = byte_source_file(template_fd);
    uint64_t start, stop;

    if (s->file_bytes < START_STATE_SPARSE_MIN) {
        patch_code(template + s->vaddr, s->vaddr, (size_t)s->file_bytes, trampolines);
        return;
    }
    for (uint64_t at = s->vaddr; at < end && source.data_in(&source, at, end, &start, &stop); at = stop)
        patch_code(template + start, start, (size_t)(stop - start), trampolines);
}

uint32_t patch_template(const struct elf_image *image, uint8_t *template, int template_fd)
{
    struct patch_trampolines trampolines = {
        .at = template + TENDER_TRAMPOLINES_GPA, .gpa = TENDER_TRAMPOLINES_GPA, .max = TRAMPOLINES_MAX};
    for (uint32_t i = 0; i < image->segment_count; i++) {
        const struct elf_segment *s = &image->segments[i];
        if (s->flags & SEGMENT_EXEC)
            patch_segment(s, template, template_fd, &trampolines);
    }
    return trampolines.used;
}

int64_t patch_call_sites(const struct elf_image *image, int template_fd)
{
    const uint64_t bytes = start_state_template_bytes(image);
    struct stat status;
    /* Touching a mapping past the end of its file raises SIGBUS, so a template that is too small stops
     * here. */
    if (fstat(template_fd, &status) < 0)
        return -errno;
    if (status.st_size < 0 || (uint64_t)status.st_size < bytes)
        return -EINVAL;
    uint8_t *template = map_template(template_fd, 0, bytes);
    if (!template)
        return -errno;
    uint32_t patched = patch_template(image, template, template_fd);
    munmap(template, bytes);
    return patched;
}

static bool segment_holds(const struct elf_segment *s, gpa_t call_site)
{
    return s->flags & SEGMENT_EXEC && call_site >= s->vaddr &&
           call_site + CALL_SITE_BYTES <= s->vaddr + s->file_bytes;
}

static int unpatch_one(const struct elf_image *image, int template_fd, gpa_t call_site, uint32_t call)
{
    uint8_t code[MOV_BYTES] = {MOV_EDX};
    put_u32(code + 1, HVT_PORT_BASE + call);
    for (uint32_t i = 0; i < image->segment_count; i++)
        if (segment_holds(&image->segments[i], call_site))
            return pwrite(template_fd, code, sizeof code, (off_t)call_site) == (ssize_t)sizeof code ? 0
                                                                                                    : -EIO;
    return -EINVAL; /* the trampoline was not written by patch_one() */
}

int unpatch_call_sites(const struct elf_image *image, int template_fd)
{
    const size_t trampolines_bytes = TENDER_TRAMPOLINES_END - TENDER_TRAMPOLINES_GPA;
    uint8_t *trampolines = map_template(template_fd, TENDER_TRAMPOLINES_GPA, trampolines_bytes);
    if (!trampolines)
        return -errno;
    int result = 0;
    for (size_t at = 0; at < trampolines_bytes && trampolines[at] == MOV_EDX && result == 0;
         at += TENDER_TRAMPOLINE_BYTES) {
        uint32_t back, call;
        memcpy(&back, trampolines + at + TRAMPOLINE_BACK_AT, sizeof back);
        memcpy(&call, trampolines + at + TRAMPOLINE_CALL_AT, sizeof call);
        result = unpatch_one(image, template_fd, back - CALL_SITE_BYTES, call);
        memset(trampolines + at, 0, TENDER_TRAMPOLINE_BYTES);
    }
    munmap(trampolines, trampolines_bytes);
    return result;
}
