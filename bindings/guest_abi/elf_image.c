/*
 * The rules for the entry and the segments of a unikernel of any guest ABI. The order of the checks
 * decides which message is printed first, and users grep for it.
 */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "elf_file.h"

_Static_assert(sizeof(((struct elf_image *)0)->segments) / sizeof(struct elf_segment) ==
                   ELF_IMAGE_SEGMENTS_MAX,
               "space for the segments");
_Static_assert(SEGMENT_EXEC == PF_X && SEGMENT_WRITE == PF_W && SEGMENT_READ == PF_R, "flags are ELF's");

/* ---- Upper bounds: against 4 GiB when parsing, against the guest's memory in elf_image_fits(). ---- */

int elf_check_entry(uint64_t entry, uint64_t limit, enum elf_error_code code, struct elf_error *error)
{
    if (entry < HVT_GUEST_MIN_GPA || entry >= limit)
        return elf_refuse(error, code, offsetof(Elf64_Ehdr, e_entry),
                          ELF_INVALID "e_entry does not fall within the memory allocation range"
                                      " (%llu < %llu || %llu >= %llu)",
                          (ull)entry, (ull)HVT_GUEST_MIN_GPA, (ull)entry, (ull)limit);
    return 0;
}

/* Rule 6: bytes of the file. */
static int check_file_bytes(const struct elf_segment *s, uint64_t limit, enum elf_error_code code,
                            struct elf_error *error)
{
    uint64_t end;

    if (s->vaddr >= limit)
        return elf_refuse(error, code, 0,
                          ELF_INVALID "phdr[%u] program file segment falls outside of valid range"
                                      " (%llu >= %llu (mem_size))",
                          s->index, (ull)s->vaddr, (ull)limit);
    if (__builtin_add_overflow(s->vaddr, s->file_bytes, &end))
        return elf_refuse(error, code, 0,
                          ELF_INVALID "phdr[%u] program file segment falls outside of valid range"
                                      " (%llu (p_vaddr) + %llu (p_filesz) overflow)",
                          s->index, (ull)s->vaddr, (ull)s->file_bytes);
    if (end > limit)
        return elf_refuse(error, code, 0,
                          ELF_INVALID "phdr[%u] program file segment falls outside of valid range"
                                      " (%llu (p_vaddr + p_filesz) > %llu (mem_size))",
                          s->index, (ull)end, (ull)limit);
    return 0;
}

/* The end of rule 7: memory, rounded up. */
static int check_memory_end(const struct elf_segment *s, uint64_t limit, enum elf_error_code code,
                            struct elf_error *error)
{
    if (s->end > limit)
        return elf_refuse(error, code, 0,
                          ELF_INVALID "phdr[%u] program memory segment falls outside of valid range"
                                      " (%llu (p_vaddr + p_memsz) > %llu (mem_size))",
                          s->index, (ull)s->end, (ull)limit);
    return 0;
}

/* ---- Segments ---- */

/* Rule 7: sets `end` to the end of memory, rounded up to `align` (a power of two). */
static int segment_set_end(struct elf_segment *s, uint64_t align, struct elf_error *error)
{
    uint64_t end;

    if (s->mem_bytes < s->file_bytes)
        return elf_refuse(error, ELF_BAD_FILE, 0,
                          ELF_INVALID "phdr[%u] program memory segment falls outside of valid range"
                                      " (%llu (p_memsz) < %llu (p_filesz))",
                          s->index, (ull)s->mem_bytes, (ull)s->file_bytes);
    if (__builtin_add_overflow(s->vaddr, s->mem_bytes, &end))
        return elf_refuse(error, ELF_BAD_FILE, 0,
                          ELF_INVALID "phdr[%u] program memory segment falls outside of valid range"
                                      " (%llu (p_vaddr) + %llu (p_memsz) overflow)",
                          s->index, (ull)s->vaddr, (ull)s->mem_bytes);
    if (__builtin_add_overflow(end, align - 1, &s->end))
        return elf_refuse(error, ELF_BAD_FILE, 0,
                          ELF_INVALID "phdr[%u] program memory segment falls outside of valid range"
                                      " (align_up with %llu (p_vaddr_end) and %llu (p_align) failed)",
                          s->index, (ull)end, (ull)align);
    s->end &= ~(align - 1);
    return check_memory_end(s, HVT_MEM_MAX, ELF_BAD_FILE, error);
}

/* Rules 1 to 5; sets `start`. `previous` is the segment before this one, or NULL. */
static int segment_set_start(struct elf_segment *s, uint64_t align, const struct elf_segment *previous,
                             struct elf_error *error)
{
    if (s->vaddr < HVT_GUEST_MIN_GPA)
        return elf_refuse(error, ELF_BAD_FILE, 0,
                          ELF_INVALID "phdr[%u].p_vaddr outside of valid memory range (%llu < %llu)",
                          s->index, (ull)s->vaddr, (ull)HVT_GUEST_MIN_GPA);
    if (previous != NULL && s->vaddr < previous->vaddr)
        return elf_refuse(error, ELF_BAD_FILE, 0,
                          ELF_INVALID "phdr[%u].p_vaddr is not in ascending order (%llu < %llu)", s->index,
                          (ull)s->vaddr, (ull)previous->vaddr);
    if (align == 0 || (align & (align - 1)) != 0)
        return elf_refuse(error, ELF_BAD_FILE, 0,
                          ELF_INVALID "phdr[%u].p_vaddr is outside of memory range"
                                      " (align_down with %llu (p_vaddr) and %llu (p_align) failed)",
                          s->index, (ull)s->vaddr, (ull)align);
    s->start = s->vaddr & ~(align - 1);
    if (s->start < HVT_GUEST_MIN_GPA)
        return elf_refuse(error, ELF_BAD_FILE, 0,
                          ELF_INVALID
                          "phdr[%u].p_vaddr_start is outside of memory range (%llu < %llu (p_min_loadaddr))",
                          s->index, (ull)s->start, (ull)HVT_GUEST_MIN_GPA);
    if (previous != NULL && s->start < previous->end)
        return elf_refuse(error, ELF_BAD_FILE, 0,
                          ELF_INVALID
                          "phdr[%u].p_vaddr_start is outside of memory range (%llu < %llu (e_end))",
                          s->index, (ull)s->start, (ull)previous->end);
    return 0;
}

/*
 * Rule 9, checked early: the last byte exists. Loading checks it again, because the file may become
 * shorter.
 */
static int check_file_has(const struct byte_source *source, const struct elf_segment *s,
                          struct elf_error *error)
{
    uint8_t last;

    int64_t got = elf_read_at(source, s->file_offset, s->file_bytes - 1, &last, 1);
    if (got < 0)
        return elf_refuse_read(error, s->file_offset, got, "segment");
    if (got != 1)
        return elf_refuse(
            error, ELF_BAD_FILE, s->file_offset,
            "phdr[%u] host file segment mismatched (file ends before %llu (p_offset) + %llu (p_filesz))",
            s->index, (ull)s->file_offset, (ull)s->file_bytes);
    return 0;
}

/* Rules 10 and 11. */
static int check_pages(const struct elf_segment *s, struct elf_error *error)
{
    if (s->start % HVT_PAGE_BYTES != 0)
        return elf_refuse(error, ELF_BAD_FILE, 0,
                          ELF_INVALID
                          "phdr[%u] p_vaddr_start not aligned with architectural page size (%llu & (%u - 1))",
                          s->index, (ull)s->start, (unsigned)HVT_PAGE_BYTES);
    if (s->end % HVT_PAGE_BYTES != 0)
        return elf_refuse(error, ELF_BAD_FILE, 0,
                          ELF_INVALID
                          "phdr[%u] p_vaddr_end not aligned with architectural page size (%llu & (%u - 1))",
                          s->index, (ull)s->end, (unsigned)HVT_PAGE_BYTES);
    if ((s->flags & SEGMENT_WRITE) != 0 && (s->flags & SEGMENT_EXEC) != 0)
        return elf_refuse(error, ELF_BAD_FILE, 0, ELF_INVALID "phdr[%u] requests WRITE and EXEC permissions",
                          s->index);
    return 0;
}

static int load_segment(const struct byte_source *source, struct elf_image *image, const Elf64_Phdr *phdr,
                        uint32_t index, struct elf_error *error)
{
    if (image->segment_count == ELF_IMAGE_SEGMENTS_MAX)
        return elf_refuse(error, ELF_BAD_FILE, 0, ELF_INVALID "phdr[%u]: more than %u loadable segments",
                          index, (unsigned)ELF_IMAGE_SEGMENTS_MAX);

    struct elf_segment *s = &image->segments[image->segment_count];
    const struct elf_segment *previous = image->segment_count == 0 ? NULL : s - 1;
    *s = (struct elf_segment){
        .vaddr = phdr->p_vaddr,
        .file_offset = phdr->p_offset,
        .file_bytes = phdr->p_filesz,
        .mem_bytes = phdr->p_memsz,
        .flags = phdr->p_flags & (SEGMENT_EXEC | SEGMENT_WRITE | SEGMENT_READ),
        .index = index,
    };
    if (segment_set_start(s, phdr->p_align, previous, error) < 0 ||
        check_file_bytes(s, HVT_MEM_MAX, ELF_BAD_FILE, error) < 0 ||
        segment_set_end(s, phdr->p_align, error) < 0 || check_file_has(source, s, error) < 0 ||
        check_pages(s, error) < 0)
        return -1;

    image->segment_count++;
    image->kernel_end = s->end; /* segments ascend */
    if (s->end > image->bss_end)
        image->bss_end = s->end;
    return 0;
}

/*
 * A PT_LOAD without file bytes is memory that the guest expects to be zero. It gets no protection,
 * and may lie anywhere where a guest may write. Every Solo5 unikernel also has an empty one at
 * address 0 (no TLS data).
 */
static int load_bss(struct elf_image *image, const Elf64_Phdr *phdr, uint32_t index, struct elf_error *error)
{
    struct elf_segment s = {.vaddr = phdr->p_vaddr, .mem_bytes = phdr->p_memsz, .index = index};

    if (s.mem_bytes == 0)
        return 0;
    if (s.vaddr < HVT_GUEST_MIN_GPA)
        return elf_refuse(error, ELF_BAD_FILE, 0,
                          ELF_INVALID "phdr[%u].p_vaddr outside of valid memory range (%llu < %llu)", index,
                          (ull)s.vaddr, (ull)HVT_GUEST_MIN_GPA);
    if (segment_set_end(&s, HVT_PAGE_BYTES, error) < 0)
        return -1;
    if (s.end > image->bss_end)
        image->bss_end = s.end;
    return 0;
}

int elf_segments_load(struct elf_file *file, struct elf_image *image, struct elf_error *error)
{
    for (uint32_t i = 0; i < file->count; i++) {
        const Elf64_Phdr *phdr = elf_phdr(file, i, error);
        if (phdr == NULL)
            return -1;
        if (phdr->p_type != PT_LOAD)
            continue;
        int result = phdr->p_filesz == 0 ? load_bss(image, phdr, i, error)
                                         : load_segment(file->source, image, phdr, i, error);
        if (result < 0)
            return -1;
    }
    return 0;
}

/* Appends to the reason in `error` how much memory the image needs. */
static int refuse_too_large(const struct elf_image *image, struct elf_error *error)
{
    uint64_t need = image->entry + 1 > image->bss_end ? image->entry + 1 : image->bss_end;
    uint64_t granules = (need + HVT_MEM_GRANULE - 1) / HVT_MEM_GRANULE;
    size_t used = strlen(error->text);

    (void)snprintf(error->text + used, sizeof error->text - used, "; it needs at least %llu MiB of memory",
                   (ull)(granules * (HVT_MEM_GRANULE >> 20)));
    return -1;
}

int elf_image_fits(const struct elf_image *image, uint64_t mem_bytes, struct elf_error *error)
{
    memset(error, 0, sizeof *error);
    if (elf_check_entry(image->entry, mem_bytes, ELF_TOO_LARGE, error) < 0)
        return refuse_too_large(image, error);
    for (uint32_t i = 0; i < image->segment_count; i++)
        if (check_file_bytes(&image->segments[i], mem_bytes, ELF_TOO_LARGE, error) < 0 ||
            check_memory_end(&image->segments[i], mem_bytes, ELF_TOO_LARGE, error) < 0)
            return refuse_too_large(image, error);
    if (image->bss_end > mem_bytes) {
        (void)elf_refuse(error, ELF_TOO_LARGE, 0,
                         ELF_INVALID "program memory segment falls outside of valid range"
                                     " (%llu (end of bss) > %llu (mem_size))",
                         (ull)image->bss_end, (ull)mem_bytes);
        return refuse_too_large(image, error);
    }
    return 0;
}
