/*
 * The patcher of call sites on code made by hand: what is a call site and what is not, where its
 * jump goes, what its trampoline contains, and that nothing else is written. Prints one TAP line
 * for each check and exits with 1 if one fails.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "holds.h"
#include "patch.h"
#include "start_state.h"

#define NOP       0x90
#define CODE_GPA  0x100000u
#define CODE_MAX  4096u
#define GUARD     64u /* bytes around the code that no code may write */
#define CAPACITY  300u
#define MAX_SITES (CODE_MAX / CALL_SITE_BYTES)

static uint8_t bytes[GUARD + CODE_MAX + GUARD];
static uint8_t before[sizeof bytes];
static uint8_t space[GUARD + CAPACITY * TENDER_TRAMPOLINE_BYTES + GUARD];
static uint8_t *const code = bytes + GUARD;
static struct patch_trampolines trampolines;

static void set_up(uint32_t max)
{
    memset(bytes, NOP, sizeof bytes);
    memset(space, 0, sizeof space);
    trampolines = (struct patch_trampolines){.at = space + GUARD, .gpa = TENDER_TRAMPOLINES_GPA, .max = max};
}

static void put_site(uint8_t *at, uint8_t call)
{
    const uint8_t site[] = {0xba, call, 0x05, 0x00, 0x00, 0xef};
    memcpy(at, site, sizeof site);
}

static uint32_t patch(gpa_t gpa, size_t len)
{
    memcpy(before, bytes, sizeof bytes);
    return patch_code(code, gpa, len, &trampolines);
}

static bool untouched(void)
{
    return memcmp(before, bytes, sizeof bytes) == 0;
}

static uint32_t u32_at(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* The call site at `at` jumps to trampoline `index`, which contains everything about it. Decoded as
 * the CPU does. */
static bool is_patched(const uint8_t *at, gpa_t gpa, const struct patch_trampolines *where, uint32_t index,
                       uint32_t call)
{
    const uint8_t *trampoline = where->at + (size_t)index * TENDER_TRAMPOLINE_BYTES;
    uint64_t trampoline_gpa = where->gpa + (uint64_t)index * 32;
    int32_t distance = (int32_t)u32_at(at + 1);
    bool holds = at[0] == 0xe9 && gpa + 5 + (uint64_t)(int64_t)distance == trampoline_gpa && at[5] == 0xef;
    holds = holds && trampoline[0] == 0xba && u32_at(trampoline + 1) == trampoline_gpa;
    holds = holds && memcmp(trampoline + 5, "\xff\x24\x25\x00\xff\x0f\x00", 7) == 0;
    holds = holds && u32_at(trampoline + 12) == gpa + 6 && u32_at(trampoline + 16) == call;
    for (int i = 20; i < 32; i++)
        holds = holds && trampoline[i] == 0xcc;
    return holds;
}

static void test_what_is_a_site(void)
{
    for (unsigned call = 0; call < 256; call++) {
        set_up(1);
        put_site(code + 100, (uint8_t)call);
        bool site = call >= 1 && call <= 8;
        uint32_t patched = patch(CODE_GPA, CODE_MAX);
        bool right = site ? patched == 1 && is_patched(code + 100, CODE_GPA + 100, &trampolines, 0, call)
                          : patched == 0 && untouched();
        if (call <= 9 || !right) {
            char claim[64];
            (void)snprintf(claim, sizeof claim, "number %u is %s", call, site ? "patched" : "left");
            check(right, claim, __LINE__);
        }
    }
    /* With any single bit of the fixed bytes changed it is no call site. The byte of the number was
     * tested above. */
    bool left = true;
    for (unsigned bit = 0; bit < 48; bit++) {
        if (bit / 8 == 1)
            continue;
        set_up(1);
        put_site(code + 100, 2);
        code[100 + bit / 8] ^= (uint8_t)(1u << bit % 8);
        left = left && patch(CODE_GPA, CODE_MAX) == 0 && untouched();
    }
    HOLDS(left);
    set_up(1);
    memset(code, 0xef, CODE_MAX);
    HOLDS(patch(CODE_GPA, CODE_MAX) == 0 && untouched());
    memset(code, 0xba, CODE_MAX);
    HOLDS(patch(CODE_GPA, CODE_MAX) == 0 && untouched());
    for (unsigned i = 0; i + 6 <= CODE_MAX; i++)
        memcpy(code + i, "\xba\xba\xba\xba\xba\xef", 6); /* first and last byte match at most addresses */
    HOLDS(patch(CODE_GPA, CODE_MAX) == 0 && untouched());
    HOLDS(trampolines.used == 0 && space[GUARD] == 0);
}

/* A call site at every offset in code of every length around a few steps of the search, and cut at
 * every byte. */
static void test_every_place(void)
{
    bool found = true, cut = true, kept = true, guarded = true;
    for (unsigned len = 0; len <= 70; len++)
        for (unsigned at = 0; at < 70; at++) {
            set_up(1);
            put_site(code + at, 7);
            uint32_t patched = patch(CODE_GPA, len);
            if (at + 6 <= len)
                found = found && patched == 1 && is_patched(code + at, CODE_GPA + at, &trampolines, 0, 7);
            else
                cut = cut && patched == 0 && untouched();
            memcpy(code + at, before + GUARD + at, 6);
            kept = kept && untouched();
            for (unsigned i = 0; i < GUARD; i++)
                guarded = guarded && space[i] == 0 && space[GUARD + TENDER_TRAMPOLINE_BYTES + i] == 0;
        }
    HOLDS(found);
    HOLDS(cut);
    HOLDS(kept);
    HOLDS(guarded);
    set_up(1);
    put_site(code - 6, 1); /* just before the code, and across its start */
    HOLDS(patch(CODE_GPA, CODE_MAX) == 0 && untouched());
    for (int i = 1; i <= 5; i++) {
        set_up(1);
        put_site(code - i, 1);
        HOLDS(patch(CODE_GPA, CODE_MAX) == 0 && untouched());
    }
}

static void test_many(void)
{
    set_up(CAPACITY);
    for (unsigned i = 0; i < MAX_SITES; i++)
        put_site(code + (size_t)6 * i, (uint8_t)(i % 8 + 1));
    HOLDS(patch(CODE_GPA, CODE_MAX) == CAPACITY);
    HOLDS(trampolines.used == CAPACITY);
    bool right = true, left = true, guarded = true;
    for (unsigned i = 0; i < MAX_SITES; i++) {
        const uint8_t *at = code + (size_t)6 * i;
        if (i < CAPACITY)
            right = right && is_patched(at, CODE_GPA + 6 * i, &trampolines, i, i % 8 + 1);
        else
            left = left && memcmp(at, before + GUARD + (size_t)6 * i, 6) == 0;
    }
    for (unsigned i = 0; i < GUARD; i++)
        guarded = guarded && space[i] == 0 && space[sizeof space - 1 - i] == 0;
    HOLDS(right);
    HOLDS(left);
    HOLDS(guarded);
    HOLDS(patch(CODE_GPA, CODE_MAX) == 0 && untouched());

    /* A second segment continues where the first one stopped. Patching again finds nothing new. */
    set_up(CAPACITY);
    put_site(code, 1);
    HOLDS(patch(CODE_GPA, 6) == 1);
    put_site(code + 6, 2);
    HOLDS(patch(CODE_GPA, 12) == 1 && trampolines.used == 2);
    HOLDS(is_patched(code, CODE_GPA, &trampolines, 0, 1) &&
          is_patched(code + 6, CODE_GPA + 6, &trampolines, 1, 2));
    HOLDS(patch(CODE_GPA, CODE_MAX) == 0 && untouched());
}

static void test_reach_of_a_jump(void)
{
    const gpa_t furthest = TENDER_TRAMPOLINES_GPA + 0x80000000u - 5;
    set_up(1);
    put_site(code, 3);
    HOLDS(patch(furthest + 1, CODE_MAX) == 0 && untouched() && trampolines.used == 0);
    HOLDS(patch(HVT_MEM_MAX - 6, 6) == 0 && untouched() && trampolines.used == 0);
    HOLDS(patch(furthest, CODE_MAX) == 1 && is_patched(code, furthest, &trampolines, 0, 3));
}

/* Random code from the bytes of call sites, compared with a search that goes byte by byte. */
static void test_random_code(void)
{
    static const uint8_t alphabet[] = {0xba, 0x01, 0x08, 0x05, 0x00, 0x00, 0xef, 0xe9, 0x00, 0x09};
    uint64_t seed = 0x9e3779b97f4a7c15;
    bool same = true;
    uint64_t sites = 0;
    for (unsigned round = 0; round < 3000; round++) {
        set_up(CAPACITY);
        for (unsigned i = 0; i < CODE_MAX; i++) {
            seed = seed * 6364136223846793005 + 1442695040888963407;
            code[i] = alphabet[(seed >> 33) % sizeof alphabet];
        }
        for (unsigned i = 0; i < 20; i++) {
            seed = seed * 6364136223846793005 + 1442695040888963407;
            put_site(code + (seed >> 33) % (CODE_MAX - 6), (uint8_t)((seed >> 60) + 1) & 0xf);
        }
        gpa_t gpa = CODE_GPA + (seed >> 40);
        size_t len = CODE_MAX - (seed >> 50) % 64;
        uint32_t patched = patch(gpa, len), expected = 0;
        for (size_t i = 0; i + 6 <= len; i++) {
            const uint8_t *old = before + GUARD + i;
            if (old[0] != 0xba || old[1] < 1 || old[1] > 8 || memcmp(old + 2, "\x05\x00\x00\xef", 4) != 0)
                continue;
            same = same && is_patched(code + i, gpa + i, &trampolines, expected, old[1]);
            memcpy(before + GUARD + i, code + i, 6);
            expected++;
        }
        same = same && patched == expected && untouched();
        same = same && patch(gpa, len) == 0;
        sites += expected;
    }
    HOLDS(same);
    HOLDS(sites > 10000);
}

/* The wrapper: only executable segments, only their file bytes, trampolines in the template's low memory. */
static void test_template(void)
{
    static struct elf_image image;
    const uint64_t size = 0x110000;
    image.segment_count = 3;
    image.kernel_end = size;
    image.segments[0] = (struct elf_segment){.start = 0x100000,
                                             .end = 0x102000,
                                             .vaddr = 0x100010,
                                             .file_bytes = 0x1100,
                                             .flags = SEGMENT_READ | SEGMENT_EXEC};
    image.segments[1] = (struct elf_segment){.start = 0x102000,
                                             .end = 0x103000,
                                             .vaddr = 0x102000,
                                             .file_bytes = 0x1000,
                                             .flags = SEGMENT_READ | SEGMENT_WRITE};
    image.segments[2] = (struct elf_segment){
        .start = 0x104000, .end = 0x105000, .vaddr = 0x104ff0, .file_bytes = 16, .flags = SEGMENT_EXEC};
    int fd = memfd_create("template", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    HOLDS(ftruncate(fd, (off_t)size - 1) == 0 && patch_call_sites(&image, fd) == -EINVAL);
    HOLDS(patch_call_sites(&image, -1) == -EBADF);
    HOLDS(ftruncate(fd, (off_t)size) == 0 && patch_call_sites(&image, fd) == 0);

    uint8_t *low = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    put_site(low + 0x10000a, 1);     /* before the segment's bytes */
    put_site(low + 0x100010, 2);     /* its first */
    put_site(low + 0x101110 - 6, 3); /* its last */
    put_site(low + 0x101110 + 1, 4); /* after its bytes in the file */
    put_site(low + 0x102100, 5);     /* not executable */
    put_site(low + 0x104ffa, 8);     /* the last bytes of a page */
    uint8_t *expected = malloc(size);
    memcpy(expected, low, size);
    HOLDS(patch_call_sites(&image, fd) == 3);

    struct patch_trampolines where = {.at = low + TENDER_TRAMPOLINES_GPA, .gpa = TENDER_TRAMPOLINES_GPA};
    HOLDS(is_patched(low + 0x100010, 0x100010, &where, 0, 2));
    HOLDS(is_patched(low + 0x10110a, 0x10110a, &where, 1, 3));
    HOLDS(is_patched(low + 0x104ffa, 0x104ffa, &where, 2, 8));
    memcpy(expected + 0x100010, low + 0x100010, 6);
    memcpy(expected + 0x10110a, low + 0x10110a, 6);
    memcpy(expected + 0x104ffa, low + 0x104ffa, 6);
    memcpy(expected + TENDER_TRAMPOLINES_GPA, low + TENDER_TRAMPOLINES_GPA,
           (size_t)3 * TENDER_TRAMPOLINE_BYTES);
    HOLDS(memcmp(expected, low, size) == 0);
    HOLDS(patch_call_sites(&image, fd) == 0 && memcmp(expected, low, size) == 0);
    munmap(low, size);
    HOLDS(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0); /* no writable mapping is left */
    HOLDS(patch_call_sites(&image, fd) == -EPERM);
    free(expected);
    close(fd);
}

/* More call sites than there is space: the trampolines end where layout.h defines it. */
static void test_full_template(void)
{
    static struct elf_image image;
    const uint64_t size = 0x100000 + 0x20000;
    image.segment_count = 1;
    image.kernel_end = size;
    image.segments[0] = (struct elf_segment){
        .start = 0x100000, .end = size, .vaddr = 0x100000, .file_bytes = 0x20000, .flags = SEGMENT_EXEC};
    int fd = memfd_create("template", MFD_CLOEXEC);
    HOLDS(ftruncate(fd, (off_t)size) == 0);
    uint8_t *low = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    for (uint32_t i = 0; i < 0x20000 / 6; i++)
        put_site(low + 0x100000 + (size_t)6 * i, 6);
    HOLDS(patch_call_sites(&image, fd) == TRAMPOLINES_MAX);
    HOLDS(low[TENDER_TRAMPOLINES_END - 32] == 0xba && low[TENDER_TRAMPOLINES_END - 1] == 0xcc &&
          low[TENDER_TRAMPOLINES_END] == 0);
    HOLDS(low[TENDER_TRAMPOLINES_GPA - 1] == 0 && low[TENDER_TRAMPOLINES_GPA] == 0xba);
    HOLDS(low[0x100000 + (TRAMPOLINES_MAX - 1) * 6] == 0xe9 && low[0x100000 + TRAMPOLINES_MAX * 6] == 0xba);
    munmap(low, size);
    close(fd);
}

/* After patching and unpatching every byte is unchanged, whatever the call sites are. Trampolines
 * that do not belong to us are not trusted. */
static void test_unpatch(void)
{
    static struct elf_image image;
    const uint64_t size = 0x110000;
    image.segment_count = 2;
    image.kernel_end = size;
    image.segments[0] = (struct elf_segment){.start = 0x100000,
                                             .end = 0x108000,
                                             .vaddr = 0x100010,
                                             .file_bytes = 0x7000,
                                             .flags = SEGMENT_READ | SEGMENT_EXEC};
    image.segments[1] = (struct elf_segment){
        .start = 0x108000, .end = 0x109000, .vaddr = 0x108000, .file_bytes = 0x1000, .flags = SEGMENT_WRITE};
    int fd = memfd_create("template", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    HOLDS(ftruncate(fd, (off_t)size) == 0);
    uint8_t *low = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    memset(low + 0x100000, NOP, 0x9000);
    HOLDS(unpatch_call_sites(&image, fd) == 0); /* nothing was patched */
    put_site(low + 0x100010, 1);
    put_site(low + 0x100016, 8);
    put_site(low + 0x100ffd, 3); /* across a page */
    put_site(low + 0x107010 - 6, 5);
    put_site(low + 0x108000, 6); /* not executable: never patched */
    for (size_t i = 0; i < 500; i++)
        put_site(low + 0x102000 + 7 * i, (uint8_t)(i % 8 + 1));
    uint8_t *original = malloc(size), *patched = malloc(size);
    memcpy(original, low, size);
    HOLDS(patch_call_sites(&image, fd) == 504);
    memcpy(patched, low, size);
    HOLDS(memcmp(original, patched, size) != 0);
    HOLDS(unpatch_call_sites(&image, fd) == 0 && memcmp(original, low, size) == 0);
    HOLDS(unpatch_call_sites(&image, fd) == 0 && memcmp(original, low, size) == 0);
    HOLDS(patch_call_sites(&image, fd) == 504 && memcmp(patched, low, size) == 0);

    /* A trampoline that names an address outside of the code. */
    static const uint32_t wild[] = {0, 5, 0x100010, 0x100015, 0x107011, 0x108006, 0x110000, 0xffffffff};
    uint8_t *trampoline = low + TENDER_TRAMPOLINES_GPA;
    for (size_t i = 0; i < sizeof wild / sizeof *wild; i++) {
        memcpy(low, patched, size);
        memcpy(trampoline + 12, &wild[i], 4);
        bool refused = unpatch_call_sites(&image, fd) == -EINVAL;
        memcpy(low + TENDER_TRAMPOLINES_GPA, patched + TENDER_TRAMPOLINES_GPA, TENDER_TRAMPOLINE_BYTES);
        HOLDS(refused && memcmp(patched, low, size) == 0);
    }
    munmap(low, size);
    HOLDS(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0); /* no writable mapping is left */
    HOLDS(unpatch_call_sites(&image, fd) == -EPERM && unpatch_call_sites(&image, -1) == -EBADF);
    free(original);
    free(patched);
    close(fd);
}

/* The space for trampolines is completely full: unpatching stops at its end. */
static void test_unpatch_a_full_template(void)
{
    static struct elf_image image;
    const uint64_t size = 0x100000 + 0x20000;
    image.segment_count = 1;
    image.kernel_end = size;
    image.segments[0] = (struct elf_segment){
        .start = 0x100000, .end = size, .vaddr = 0x100000, .file_bytes = 0x20000, .flags = SEGMENT_EXEC};
    int fd = memfd_create("template", MFD_CLOEXEC);
    HOLDS(ftruncate(fd, (off_t)size) == 0);
    uint8_t *low = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    low[TENDER_TRAMPOLINES_END] = 0xba; /* part of the extension block: not a trampoline */
    for (uint32_t i = 0; i < 0x20000 / 6; i++)
        put_site(low + 0x100000 + (size_t)6 * i, 6);
    uint8_t *original = malloc(size);
    memcpy(original, low, size);
    HOLDS(patch_call_sites(&image, fd) == TRAMPOLINES_MAX);
    HOLDS(unpatch_call_sites(&image, fd) == 0 && memcmp(original, low, size) == 0);
    munmap(low, size);
    free(original);
    close(fd);
}

int main(void)
{
    test_what_is_a_site();
    test_every_place();
    test_many();
    test_reach_of_a_jump();
    test_random_code();
    test_template();
    test_full_template();
    test_unpatch();
    test_unpatch_a_full_template();
    return claims_end();
}
