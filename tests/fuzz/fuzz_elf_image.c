/*
 * Fuzzes the code that a hostile file reaches: the ELF parser, the memory check, and loading into a
 * template.
 *
 * Any input must be refused with a reason, or give an image that keeps the promises of elf_image.h.
 * A broken promise aborts. Templates larger than 64 MiB are not loaded: the code is the same, only
 * slower.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memfd_create */
#endif

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "elf_image.h"
#include "must.h"
#include "start_state.h"

#define TEMPLATE_MAX 0x4000000ULL

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_error(const struct elf_error *error)
{
    size_t length = strnlen(error->text, sizeof error->text);

    MUST(error->code > ELF_OK && error->code <= ELF_TOO_LARGE);
    MUST(length > 0 && length < sizeof error->text - 1); /* not truncated */
    MUST(error->os_error == 0);                          /* memory sources do not fail */
    for (size_t i = 0; i < length; i++)
        MUST(error->text[i] >= ' ' && error->text[i] <= '~'); /* bytes of the file never reach a terminal */
}

static void check_segments(const struct elf_image *image, size_t size)
{
    gpa_t end = HVT_GUEST_MIN_GPA;

    MUST(image->segment_count <= ELF_IMAGE_SEGMENTS_MAX);
    for (uint32_t i = 0; i < image->segment_count; i++) {
        const struct elf_segment *s = &image->segments[i];
        MUST(s->start >= end && s->end > s->start && s->end <= HVT_MEM_MAX);
        MUST(s->start % HVT_PAGE_BYTES == 0 && s->end % HVT_PAGE_BYTES == 0);
        MUST(s->vaddr >= s->start && s->file_bytes > 0 && s->file_bytes <= s->mem_bytes);
        MUST(s->mem_bytes <= s->end - s->vaddr);
        MUST(s->file_offset < size && s->file_bytes <= size - s->file_offset);
        MUST((s->flags & ~7U) == 0);
        MUST((s->flags & (SEGMENT_WRITE | SEGMENT_EXEC)) != (SEGMENT_WRITE | SEGMENT_EXEC));
        MUST(i == 0 || s->index > image->segments[i - 1].index);
        end = s->end;
    }
    MUST(image->kernel_end == (image->segment_count == 0 ? 0 : end));
    MUST(image->bss_end >= image->kernel_end && image->bss_end <= HVT_MEM_MAX);
}

static void check_manifest(const struct elf_image *image)
{
    const struct mft *mft = &image->manifest;
    static const union mft_params zero;

    MUST(mft->version == MFT_VERSION && mft->entries >= 1 && mft->entries <= MFT_MAX_ENTRIES);
    MUST(image->mft_bytes == 8 + 104 * mft->entries);
    MUST(mft->e[0].type == MFT_RESERVED_FIRST && mft->e[0].name[0] == '\0');
    for (uint32_t i = 0; i < mft->entries; i++) {
        MUST(mft->e[i].name[MFT_NAME_BYTES - 1] == '\0');
        MUST(mft->e[i].attached == 0 && mft->e[i].host_private == 0);
        MUST(memcmp(&mft->e[i].u, &zero, sizeof zero) == 0);
    }
}

static void check_fits(const struct elf_image *image)
{
    const uint64_t sizes[] = {0,
                              HVT_GUEST_MIN_GPA,
                              HVT_MEM_GRANULE,
                              image->entry,
                              image->entry + 1,
                              image->kernel_end,
                              image->bss_end - 1, /* wraps if there is no bss: larger than any memory */
                              image->bss_end,
                              0x20000000,
                              HVT_MEM_MAX};

    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct elf_error error;
        int fits = image->entry < sizes[i] && image->bss_end <= sizes[i];
        MUST(elf_image_fits(image, sizes[i], &error) == (fits ? 0 : -1));
        if (!fits)
            check_error(&error);
    }
}

static void check_load(const struct elf_image *image, const struct byte_source *source)
{
    const uint64_t bytes = start_state_template_bytes(image);
    const uint8_t *file = source->bytes;
    struct elf_error error;

    MUST(bytes >= HVT_GUEST_MIN_GPA && bytes % HVT_PAGE_BYTES == 0 && bytes >= image->kernel_end);
    if (bytes > TEMPLATE_MAX)
        return;

    int fd = memfd_create("fuzz-template", MFD_CLOEXEC);
    MUST(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
    MUST(start_state_load_segments(image, source, fd, &error) == 0);
    uint8_t *memory = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    MUST(memory != MAP_FAILED);
    for (uint32_t i = 0; i < image->segment_count; i++) {
        const struct elf_segment *s = &image->segments[i];
        const gpa_t bytes_end = s->vaddr + s->file_bytes;
        MUST(memcmp(memory + s->vaddr, file + s->file_offset, s->file_bytes) == 0);
        MUST(s->vaddr == s->start || memory[s->vaddr - 1] == 0);
        MUST(bytes_end == s->end || memory[bytes_end] == 0);
    }
    MUST(munmap(memory, bytes) == 0);

    /* The file is truncated between parsing and loading. */
    struct byte_source shorter = byte_source_memory(source->bytes, source->size / 2);
    if (start_state_load_segments(image, &shorter, fd, &error) != 0)
        check_error(&error);
    close(fd);
}

static void check_boot_info(const struct elf_image *image)
{
    static uint8_t low[HVT_GUEST_MIN_GPA];
    static char line[HVT_CMDLINE_BYTES];
    const size_t end = HVT_BOOT_INFO_GPA + sizeof(struct hvt_boot_info) + image->mft_bytes + sizeof line;

    memset(line, 'x', sizeof line);
    low[end] = 0xcc;
    start_state_write_boot_info(low + HVT_BOOT_INFO_GPA, image, &image->manifest, HVT_MEM_GRANULE, 1, 0, line,
                                sizeof line - 1);
    MUST(low[end - 2] == 'x' && low[end - 1] == 0 && low[end] == 0xcc);
    MUST(memcmp(low + HVT_BOOT_INFO_GPA + sizeof(struct hvt_boot_info), &image->manifest, image->mft_bytes) ==
         0);
}

/* A file that is read through a window gives the same as its bytes in memory: piece by piece, and
 * parsed. */
static void check_window(const uint8_t *data, size_t size)
{
    static int file = -1;
    static struct elf_image plain, windowed;
    static struct byte_window window;
    struct elf_error plain_error = {0}, windowed_error = {0};
    uint8_t one[sizeof window.bytes + 8], other[sizeof one];
    if (file < 0)
        file = memfd_create("image", 0);
    MUST(ftruncate(file, (off_t)size) == 0 && pwrite(file, data, size, 0) == (ssize_t)size);
    const struct byte_source memory = byte_source_memory(data, size),
                             by_window = byte_source_window(&window, file);
    uint64_t at = size;
    for (size_t i = 0; i + 4 <= size && i < 64; i += 4) { /* offsets and lengths come from the bytes */
        const size_t len = (data[i] | (size_t)data[i + 1] << 8) % sizeof one;
        at = data[i + 3] == 0xff ? UINT64_MAX - data[i + 2] : (at + data[i + 2] * 16u) % (size + 64);
        const int64_t got = memory.read_at(&memory, at, one, len);
        MUST(by_window.read_at(&by_window, at, other, len) == got && memcmp(one, other, (size_t)got) == 0);
    }
    memset(&plain, 0, sizeof plain);
    memset(&windowed, 0, sizeof windowed);
    const int parsed = elf_image_parse(&memory, &plain, &plain_error);
    MUST(elf_image_parse(&by_window, &windowed, &windowed_error) == parsed);
    MUST(parsed != 0 || memcmp(&plain, &windowed, sizeof plain) == 0);
    MUST(strcmp(plain_error.text, windowed_error.text) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct elf_image image;
    check_window(data, size);
    struct byte_source source = byte_source_memory(data, size);
    struct elf_error error;

    if (elf_image_query_abi(&source, &image, &error) != 0)
        check_error(&error);
    if (elf_image_query_manifest(&source, &image, &error) != 0)
        check_error(&error);
    else
        check_manifest(&image);
    if (elf_image_parse(&source, &image, &error) != 0) {
        check_error(&error);
        return 0;
    }
    MUST(image.entry >= HVT_GUEST_MIN_GPA && image.entry < HVT_MEM_MAX);
    MUST(image.abi_target == HVT_ABI_TARGET_HVT);
    MUST(image.abi_version == 1 || image.abi_version == 2);
    MUST(image.extensions == 0 ||
         (image.extensions & ~(uint32_t)(TENDER_FEATURE_BLOCK_BATCH | TENDER_FEATURE_NET_BATCH |
                                         TENDER_FEATURE_NET_OFFLOAD)) == TENDER_FEATURE_GATE);
    check_segments(&image, size);
    check_manifest(&image);
    check_fits(&image);
    check_load(&image, &source);
    check_boot_info(&image);
    return 0;
}

#ifdef FUZZ_STANDALONE
/* Replays files, for compilers without a fuzzer and for regression tests. */
int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
            perror(argv[i]);
            return 1;
        }
        long size = ftell(file);
        uint8_t *bytes = malloc(size > 0 ? (size_t)size : 1);
        rewind(file);
        if (size < 0 || bytes == NULL || fread(bytes, 1, (size_t)size, file) != (size_t)size) {
            perror(argv[i]);
            return 1;
        }
        (void)LLVMFuzzerTestOneInput(bytes, (size_t)size);
        free(bytes);
        fclose(file);
    }
    printf("%d files\n", argc - 1);
    return 0;
}
#endif
