/*
 * The acceptance rules of a unikernel ELF, one after the other; elf_image.h says what they promise.
 *
 *   header -> ABI note -> target and version -> manifest note -> manifest -> our note -> entry -> segments
 *
 * The order decides which message wins, and people grep for it, so it is the order of the calls in
 * elf_image_parse(). Each pass reads the program headers again: the file may change in between, but what is
 * used later is only what was checked, because it is kept in `struct elf_image` and never read twice.
 */
#include "elf_image.h"

#include <elf.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "hypercall.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "headers are used as they are in the file");
_Static_assert(sizeof(((struct elf_image *)0)->segments) / sizeof(struct elf_segment) ==
                   ELF_IMAGE_SEGMENTS_MAX,
               "room for the segments");
_Static_assert(sizeof(((struct elf_error *)0)->text) == ELF_ERROR_TEXT_BYTES, "room for the text");
_Static_assert(SEGMENT_EXEC == PF_X && SEGMENT_WRITE == PF_W && SEGMENT_READ == PF_R, "flags are ELF's");

#if defined(__x86_64__)
#define HOST_MACHINE EM_X86_64
#elif defined(__aarch64__)
#define HOST_MACHINE EM_AARCH64
#else
#error "no unikernels exist for this machine"
#endif

#define PHDR_CHUNK         64 /* 3584 bytes of stack; a table of 65535 headers takes 1024 reads */
#define INVALID            "invalid executable: "
#define ABI_DATA_MIN       8 /* target and version */
#define EXTENSION_DATA_MIN 8 /* version and features */

typedef unsigned long long ull; /* for %llu */

/* A window on the program header table, which can be larger than what may stand on a stack. */
struct phdr_window {
    const struct byte_source *source;
    uint64_t table_offset;
    uint32_t count;
    uint32_t first; /* the window holds [first, first + held) */
    uint32_t held;
    Elf64_Phdr phdr[PHDR_CHUNK];
};

/* A note that is looked for. */
struct note_kind {
    const char *owner;
    uint32_t owner_bytes; /* with the NUL */
    uint32_t type;
    uint32_t align;
    uint32_t max_bytes;
    bool minds_others; /* refuses a note of anybody's that is too short or past the end of the file */
};

static const struct note_kind abi_note = {
    .owner = "Solo5",
    .owner_bytes = sizeof "Solo5",
    .type = HVT_NOTE_ABI_TYPE,
    .align = HVT_NOTE_ABI_ALIGN,
    .max_bytes = HVT_NOTE_ABI_MAX,
    .minds_others = true,
};
static const struct note_kind manifest_note = {
    .owner = "Solo5",
    .owner_bytes = sizeof "Solo5",
    .type = HVT_NOTE_MFT_TYPE,
    .align = HVT_NOTE_MFT_ALIGN,
    .max_bytes = HVT_NOTE_MFT_MAX,
    .minds_others = true,
};
/* Solo5 does not look behind its own two notes, so what stands there may not refuse a file that lacks ours.
 */
static const struct note_kind extension_note = {
    .owner = "Tender",
    .owner_bytes = sizeof "Tender",
    .type = TENDER_NOTE_EXTENSION_TYPE,
    .align = TENDER_NOTE_EXTENSION_ALIGN,
    .max_bytes = TENDER_NOTE_EXTENSION_MAX,
    .minds_others = false,
};

struct note {
    uint32_t phdr_index;
    uint32_t data_bytes; /* 1 up to the maximum asked for */
    uint64_t offset;     /* of the note in the file */
    uint32_t data_after; /* bytes from there to the data */
};

static __attribute__((format(printf, 4, 5))) int refuse(struct elf_error *error, enum elf_error_code code,
                                                        uint64_t offset, const char *format, ...)
{
    va_list arguments;

    error->code = (int32_t)code;
    error->os_error = 0;
    error->offset = offset;
    va_start(arguments, format);
    (void)vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    return -1;
}

/* Reads failed with -errno; the caller adds the words of that errno. */
static int refuse_read(struct elf_error *error, uint64_t offset, int64_t result, const char *what)
{
    (void)refuse(error, ELF_BAD_FILE, offset, "%s could not be read", what);
    error->os_error = (int32_t)-result;
    return -1;
}

static int64_t read_at(const struct byte_source *source, uint64_t offset, uint64_t more, void *to, size_t len)
{
    uint64_t at;

    if (__builtin_add_overflow(offset, more, &at))
        return 0; /* no file is that long */
    return source->read_at(source, at, to, len);
}

static int read_header(const struct byte_source *source, Elf64_Ehdr *header, struct elf_error *error)
{
    int64_t got = source->read_at(source, 0, header, sizeof *header);
    if (got < 0)
        return refuse_read(error, 0, got, "elf header");
    if (got != sizeof *header)
        return refuse(error, ELF_BAD_FILE, 0,
                      INVALID "elf header does not match the expected size (%llu != %zu)", (ull)got,
                      sizeof *header);

    /* OSABI, the ABI version, the version in e_ident, flags and section headers vary between toolchains. */
    bool valid = memcmp(header->e_ident, ELFMAG, SELFMAG) == 0 && header->e_ident[EI_CLASS] == ELFCLASS64 &&
                 header->e_ident[EI_DATA] == ELFDATA2LSB && header->e_version == EV_CURRENT &&
                 header->e_ehsize == sizeof *header && header->e_phnum >= 1 &&
                 header->e_phentsize == sizeof(Elf64_Phdr) && header->e_type == ET_EXEC &&
                 header->e_machine == HOST_MACHINE;
    if (!valid)
        return refuse(error, ELF_BAD_FILE, 0,
                      INVALID "invalid or unsupported executable (elf header invalid while loading note)");
    return 0;
}

/* Header `index`, valid until the next call, or NULL with `error` filled; `index` is below `count`. */
static const Elf64_Phdr *phdr_at(struct phdr_window *window, uint32_t index, struct elf_error *error)
{
    if (index >= window->first && index - window->first < window->held)
        return &window->phdr[index - window->first];

    uint32_t left = window->count - index;
    uint32_t held = left < PHDR_CHUNK ? left : PHDR_CHUNK;
    size_t len = held * sizeof(Elf64_Phdr);
    uint64_t before = index * sizeof(Elf64_Phdr);
    int64_t got = read_at(window->source, window->table_offset, before, window->phdr, len);

    window->first = index;
    window->held = 0;
    if (got < 0) {
        (void)refuse_read(error, window->table_offset, got, "program header");
        return NULL;
    }
    if ((uint64_t)got != len) {
        (void)refuse(error, ELF_BAD_FILE, window->table_offset,
                     INVALID
                     "program header does not match the expected size (%llu != %llu while loading note)",
                     (ull)(before + (uint64_t)got), (ull)(window->count * sizeof(Elf64_Phdr)));
        return NULL;
    }
    window->held = held;
    return &window->phdr[0];
}

static int check_table_is_readable(struct phdr_window *window, struct elf_error *error)
{
    for (uint32_t i = 0; i < window->count; i += PHDR_CHUNK)
        if (phdr_at(window, i, error) == NULL)
            return -1;
    return 0;
}

/*
 * Finds the first PT_NOTE whose first note is of this kind. Returns 1, 0 if there is none, or -1. Data starts
 * aligned from the start of the note, and that padding counts inside descsz.
 */
static int note_find(struct phdr_window *window, const struct note_kind *kind, struct note *note,
                     struct elf_error *error)
{
    struct {
        Elf64_Nhdr h;
        char name[8];
    } header;
    _Static_assert(sizeof header == HVT_NOTE_HEADER_BYTES, "note header");

    for (uint32_t i = 0; i < window->count; i++) {
        const Elf64_Phdr *phdr = phdr_at(window, i, error);
        if (phdr == NULL)
            return -1;
        if (phdr->p_type != PT_NOTE)
            continue;
        if (phdr->p_filesz < sizeof header.h && kind->minds_others)
            return refuse(error, ELF_BAD_NOTE, phdr->p_offset,
                          INVALID "phdr[%u].p_filesz note does not fall within valid size (%llu < %zu)", i,
                          (ull)phdr->p_filesz, sizeof header.h);
        if (phdr->p_filesz < sizeof header)
            continue; /* too short to be the one */

        int64_t got = read_at(window->source, phdr->p_offset, 0, &header, sizeof header);
        if (got < 0)
            return refuse_read(error, phdr->p_offset, got, "note header");
        if (got != sizeof header && kind->minds_others)
            return refuse(error, ELF_BAD_NOTE, phdr->p_offset,
                          "phdr[%u] bytes read mismatches note size (%llu != %zu)", i, (ull)got,
                          sizeof header);
        if (got != sizeof header || header.h.n_namesz != kind->owner_bytes ||
            memcmp(header.name, kind->owner, kind->owner_bytes) != 0 || header.h.n_type != kind->type)
            continue;

        uint32_t descsz = header.h.n_descsz;
        uint32_t padding = -(uint32_t)sizeof header & (kind->align - 1);
        if (descsz < 1 || descsz > kind->max_bytes)
            return refuse(error, ELF_BAD_NOTE, phdr->p_offset,
                          INVALID "phdr[%u] note does not fall within valid size (%u < 1 || %u > %u)", i,
                          descsz, descsz, kind->max_bytes);
        if (phdr->p_filesz < sizeof header + (uint64_t)descsz)
            return refuse(error, ELF_BAD_NOTE, phdr->p_offset,
                          INVALID "phdr[%u] note does not fall within valid size (%llu < %llu)", i,
                          (ull)phdr->p_filesz, (ull)(sizeof header + (uint64_t)descsz));
        if (descsz <= padding) /* "INV_EXE" is what Solo5 prints here, and what is grepped for */
            return refuse(
                error, ELF_BAD_NOTE, phdr->p_offset,
                "INV_EXE: phdr[%u] note does not fall within valid size (%u <= %u bytes of padding)", i,
                descsz, padding);

        note->phdr_index = i;
        note->data_bytes = descsz - padding;
        note->offset = phdr->p_offset;
        note->data_after = (uint32_t)sizeof header + padding;
        return 1;
    }
    return 0;
}

/* Reads the note's data; `to` has room for the maximum that note_find() was given, less padding. */
static int note_read(const struct byte_source *source, const struct note *note, void *to,
                     struct elf_error *error)
{
    int64_t got = read_at(source, note->offset, note->data_after, to, note->data_bytes);
    if (got < 0)
        return refuse_read(error, note->offset, got, "note");
    if ((uint64_t)got != note->data_bytes)
        return refuse(error, ELF_BAD_NOTE, note->offset,
                      "phdr[%u] bytes read mismatches note size (%llu != %u)", note->phdr_index, (ull)got,
                      note->data_bytes);
    return 0;
}

static int refuse_target(struct elf_error *error, uint64_t offset, uint32_t target)
{
    static const char *const names[] = {
        [HVT_ABI_TARGET_SPT] = "spt",   [HVT_ABI_TARGET_VIRTIO] = "virtio",
        [HVT_ABI_TARGET_MUEN] = "muen", [HVT_ABI_TARGET_GENODE] = "genode",
        [HVT_ABI_TARGET_XEN] = "xen",
    };

    if (target < sizeof names / sizeof names[0] && names[target] != NULL)
        return refuse(error, ELF_BAD_ABI, offset, "Executable is not for the solo5-hvt target (it is for %s)",
                      names[target]);
    return refuse(error, ELF_BAD_ABI, offset,
                  "Executable is not for the solo5-hvt target (it is for unknown target %u)", target);
}

/* What the ABI note says, whatever that is. */
static int read_abi(struct phdr_window *window, struct elf_image *image, uint64_t *offset,
                    struct elf_error *error)
{
    uint8_t data[HVT_NOTE_ABI_MAX];
    struct hvt_abi_info info = {0};
    struct note note;

    int found = note_find(window, &abi_note, &note, error);
    if (found < 0)
        return -1;
    if (found == 0)
        return refuse(error, ELF_BAD_ABI, 0, "No Solo5 ABI information found in executable");
    if (note.data_bytes < ABI_DATA_MIN)
        return refuse(error, ELF_BAD_NOTE, note.offset,
                      INVALID "phdr[%u] note does not fall within valid size (%u < %u)", note.phdr_index,
                      note.data_bytes, (unsigned)ABI_DATA_MIN);
    if (note_read(window->source, &note, data, error) < 0)
        return -1;

    memcpy(&info, data, ABI_DATA_MIN);
    image->abi_target = info.target;
    image->abi_version = info.version;
    *offset = note.offset;
    return 0;
}

static int load_abi(struct phdr_window *window, struct elf_image *image, struct elf_error *error)
{
    uint64_t offset = 0;

    if (read_abi(window, image, &offset, error) < 0)
        return -1;
    if (image->abi_target != HVT_ABI_TARGET_HVT)
        return refuse_target(error, offset, image->abi_target);
    if (image->abi_version < HVT_ABI_VERSION_MIN || image->abi_version > HVT_ABI_VERSION)
        return refuse(error, ELF_BAD_ABI, offset, "Executable requests unsupported ABI version %u",
                      image->abi_version);
    return 0;
}

static bool manifest_is_valid(const struct mft *mft, uint64_t bytes)
{
    const size_t header = offsetof(struct mft, e);

    if (bytes < header || mft->version != MFT_VERSION || mft->entries < 1 || mft->entries > MFT_MAX_ENTRIES ||
        bytes != header + mft->entries * sizeof mft->e[0])
        return false;
    if (mft->e[0].type != MFT_RESERVED_FIRST || mft->e[0].name[0] != '\0')
        return false;
    for (uint32_t i = 0; i < mft->entries; i++)
        if (mft->e[i].name[MFT_NAME_BYTES - 1] != '\0' || mft->e[i].attached != 0)
            return false;
    return true;
}

/* `invalid`: the words for a manifest that breaks a rule; Solo5's tender and its elftool have different ones.
 */
static int load_manifest(struct phdr_window *window, struct elf_image *image, const char *invalid,
                         struct elf_error *error)
{
    struct mft *mft = &image->manifest;
    struct note note;

    _Static_assert(sizeof *mft >= HVT_NOTE_MFT_MAX - 4, "the note's data fit");
    int found = note_find(window, &manifest_note, &note, error);
    if (found < 0)
        return -1;
    if (found == 0)
        return refuse(error, ELF_BAD_MANIFEST, 0, "No Solo5 manifest found in executable");
    if (note_read(window->source, &note, mft, error) < 0)
        return -1;
    if (!manifest_is_valid(mft, note.data_bytes))
        return refuse(error, ELF_BAD_MANIFEST, note.offset, "%s", invalid);

    /* A file cannot choose a MAC, a capacity or a host descriptor: those are decided when it is attached. */
    for (uint32_t i = 0; i < mft->entries; i++) {
        memset(&mft->e[i].u, 0, sizeof mft->e[i].u);
        mft->e[i].host_private = 0;
        memset(mft->e[i].padding, 0, sizeof mft->e[i].padding);
    }
    image->mft_bytes = note.data_bytes;
    return 0;
}

/*
 * Our note is a wish: a file without it, of a version that we do not know, or with bits that we do not know
 * is as good as any other, and gets less. Only a note that is ours and broken is refused.
 */
static int load_extension(struct phdr_window *window, struct elf_image *image, struct elf_error *error)
{
    uint8_t data[TENDER_NOTE_EXTENSION_MAX];
    struct tender_extension_info info = {0};
    struct note note;

    int found = note_find(window, &extension_note, &note, error);
    if (found <= 0)
        return found;
    if (note.data_bytes < EXTENSION_DATA_MIN)
        return refuse(error, ELF_BAD_NOTE, note.offset,
                      INVALID "phdr[%u] note does not fall within valid size (%u < %u)", note.phdr_index,
                      note.data_bytes, (unsigned)EXTENSION_DATA_MIN);
    if (note_read(window->source, &note, data, error) < 0)
        return -1;

    memcpy(&info, data, EXTENSION_DATA_MIN);
    if (info.version == TENDER_EXTENSION_VERSION)
        image->extensions = features_granted(info.features);
    return 0;
}

/* ---- Upper bounds: against 4 GiB when parsing, against the guest's memory in elf_image_fits(). ---- */

static int check_entry(uint64_t entry, uint64_t limit, enum elf_error_code code, struct elf_error *error)
{
    if (entry < HVT_GUEST_MIN_GPA || entry >= limit)
        return refuse(error, code, offsetof(Elf64_Ehdr, e_entry),
                      INVALID "e_entry does not fall within the memory allocation range"
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
        return refuse(error, code, 0,
                      INVALID "phdr[%u] program file segment falls outside of valid range"
                              " (%llu >= %llu (mem_size))",
                      s->index, (ull)s->vaddr, (ull)limit);
    if (__builtin_add_overflow(s->vaddr, s->file_bytes, &end))
        return refuse(error, code, 0,
                      INVALID "phdr[%u] program file segment falls outside of valid range"
                              " (%llu (p_vaddr) + %llu (p_filesz) overflow)",
                      s->index, (ull)s->vaddr, (ull)s->file_bytes);
    if (end > limit)
        return refuse(error, code, 0,
                      INVALID "phdr[%u] program file segment falls outside of valid range"
                              " (%llu (p_vaddr + p_filesz) > %llu (mem_size))",
                      s->index, (ull)end, (ull)limit);
    return 0;
}

/* The end of rule 7: memory, rounded up. */
static int check_memory_end(const struct elf_segment *s, uint64_t limit, enum elf_error_code code,
                            struct elf_error *error)
{
    if (s->end > limit)
        return refuse(error, code, 0,
                      INVALID "phdr[%u] program memory segment falls outside of valid range"
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
        return refuse(error, ELF_BAD_FILE, 0,
                      INVALID "phdr[%u] program memory segment falls outside of valid range"
                              " (%llu (p_memsz) < %llu (p_filesz))",
                      s->index, (ull)s->mem_bytes, (ull)s->file_bytes);
    if (__builtin_add_overflow(s->vaddr, s->mem_bytes, &end))
        return refuse(error, ELF_BAD_FILE, 0,
                      INVALID "phdr[%u] program memory segment falls outside of valid range"
                              " (%llu (p_vaddr) + %llu (p_memsz) overflow)",
                      s->index, (ull)s->vaddr, (ull)s->mem_bytes);
    if (__builtin_add_overflow(end, align - 1, &s->end))
        return refuse(error, ELF_BAD_FILE, 0,
                      INVALID "phdr[%u] program memory segment falls outside of valid range"
                              " (align_up with %llu (p_vaddr_end) and %llu (p_align) failed)",
                      s->index, (ull)end, (ull)align);
    s->end &= ~(align - 1);
    return check_memory_end(s, HVT_MEM_MAX, ELF_BAD_FILE, error);
}

/* Rules 1 to 5; sets `start`. `previous` is the segment before, or NULL. */
static int segment_set_start(struct elf_segment *s, uint64_t align, const struct elf_segment *previous,
                             struct elf_error *error)
{
    if (s->vaddr < HVT_GUEST_MIN_GPA)
        return refuse(error, ELF_BAD_FILE, 0,
                      INVALID "phdr[%u].p_vaddr outside of valid memory range (%llu < %llu)", s->index,
                      (ull)s->vaddr, (ull)HVT_GUEST_MIN_GPA);
    if (previous != NULL && s->vaddr < previous->vaddr)
        return refuse(error, ELF_BAD_FILE, 0,
                      INVALID "phdr[%u].p_vaddr is not in ascending order (%llu < %llu)", s->index,
                      (ull)s->vaddr, (ull)previous->vaddr);
    if (align == 0 || (align & (align - 1)) != 0)
        return refuse(error, ELF_BAD_FILE, 0,
                      INVALID "phdr[%u].p_vaddr is outside of memory range"
                              " (align_down with %llu (p_vaddr) and %llu (p_align) failed)",
                      s->index, (ull)s->vaddr, (ull)align);
    s->start = s->vaddr & ~(align - 1);
    if (s->start < HVT_GUEST_MIN_GPA)
        return refuse(error, ELF_BAD_FILE, 0,
                      INVALID
                      "phdr[%u].p_vaddr_start is outside of memory range (%llu < %llu (p_min_loadaddr))",
                      s->index, (ull)s->start, (ull)HVT_GUEST_MIN_GPA);
    if (previous != NULL && s->start < previous->end)
        return refuse(error, ELF_BAD_FILE, 0,
                      INVALID "phdr[%u].p_vaddr_start is outside of memory range (%llu < %llu (e_end))",
                      s->index, (ull)s->start, (ull)previous->end);
    return 0;
}

/* Rule 9, early: the last byte is there. Loading checks again, because the file may become shorter. */
static int check_file_has(const struct byte_source *source, const struct elf_segment *s,
                          struct elf_error *error)
{
    uint8_t last;

    int64_t got = read_at(source, s->file_offset, s->file_bytes - 1, &last, 1);
    if (got < 0)
        return refuse_read(error, s->file_offset, got, "segment");
    if (got != 1)
        return refuse(
            error, ELF_BAD_FILE, s->file_offset,
            "phdr[%u] host file segment mismatched (file ends before %llu (p_offset) + %llu (p_filesz))",
            s->index, (ull)s->file_offset, (ull)s->file_bytes);
    return 0;
}

/* Rules 10 and 11. */
static int check_pages(const struct elf_segment *s, struct elf_error *error)
{
    if (s->start % HVT_PAGE_BYTES != 0)
        return refuse(error, ELF_BAD_FILE, 0,
                      INVALID
                      "phdr[%u] p_vaddr_start not aligned with architectural page size (%llu & (%u - 1))",
                      s->index, (ull)s->start, (unsigned)HVT_PAGE_BYTES);
    if (s->end % HVT_PAGE_BYTES != 0)
        return refuse(error, ELF_BAD_FILE, 0,
                      INVALID
                      "phdr[%u] p_vaddr_end not aligned with architectural page size (%llu & (%u - 1))",
                      s->index, (ull)s->end, (unsigned)HVT_PAGE_BYTES);
    if ((s->flags & SEGMENT_WRITE) != 0 && (s->flags & SEGMENT_EXEC) != 0)
        return refuse(error, ELF_BAD_FILE, 0, INVALID "phdr[%u] requests WRITE and EXEC permissions",
                      s->index);
    return 0;
}

static int load_segment(const struct byte_source *source, struct elf_image *image, const Elf64_Phdr *phdr,
                        uint32_t index, struct elf_error *error)
{
    if (image->segment_count == ELF_IMAGE_SEGMENTS_MAX)
        return refuse(error, ELF_BAD_FILE, 0, INVALID "phdr[%u]: more than %u loadable segments", index,
                      (unsigned)ELF_IMAGE_SEGMENTS_MAX);

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
 * A PT_LOAD without file bytes is memory that the guest expects to be zero: it gets no protection and may lie
 * anywhere a guest may write. Every Solo5 unikernel also has an empty one at address 0 (no TLS data).
 */
static int load_bss(struct elf_image *image, const Elf64_Phdr *phdr, uint32_t index, struct elf_error *error)
{
    struct elf_segment s = {.vaddr = phdr->p_vaddr, .mem_bytes = phdr->p_memsz, .index = index};

    if (s.mem_bytes == 0)
        return 0;
    if (s.vaddr < HVT_GUEST_MIN_GPA)
        return refuse(error, ELF_BAD_FILE, 0,
                      INVALID "phdr[%u].p_vaddr outside of valid memory range (%llu < %llu)", index,
                      (ull)s.vaddr, (ull)HVT_GUEST_MIN_GPA);
    if (segment_set_end(&s, HVT_PAGE_BYTES, error) < 0)
        return -1;
    if (s.end > image->bss_end)
        image->bss_end = s.end;
    return 0;
}

static int load_segments(struct phdr_window *window, struct elf_image *image, struct elf_error *error)
{
    for (uint32_t i = 0; i < window->count; i++) {
        const Elf64_Phdr *phdr = phdr_at(window, i, error);
        if (phdr == NULL)
            return -1;
        if (phdr->p_type != PT_LOAD)
            continue;
        int result = phdr->p_filesz == 0 ? load_bss(image, phdr, i, error)
                                         : load_segment(window->source, image, phdr, i, error);
        if (result < 0)
            return -1;
    }
    return 0;
}

/* The header and a readable table of program headers: what every question to a file begins with. */
static int open_table(const struct byte_source *source, struct phdr_window *window, struct elf_image *image,
                      struct elf_error *error)
{
    Elf64_Ehdr header;

    memset(image, 0, offsetof(struct elf_image, segments));
    image->manifest.entries =
        0; /* of segments and entries none counts: clearing them would touch their pages */
    memset(error, 0, sizeof *error);
    if (read_header(source, &header, error) < 0)
        return -1;

    image->entry = header.e_entry;
    window->source = source;
    window->table_offset = header.e_phoff;
    window->count = header.e_phnum;
    window->first = 0;
    window->held = 0;
    return check_table_is_readable(window, error);
}

int elf_image_parse(const struct byte_source *source, struct elf_image *image, struct elf_error *error)
{
    struct phdr_window window;

    if (open_table(source, &window, image, error) < 0 || load_abi(&window, image, error) < 0 ||
        load_manifest(&window, image, "Solo5 manifest is invalid", error) < 0 ||
        load_extension(&window, image, error) < 0 ||
        check_entry(image->entry, HVT_MEM_MAX, ELF_BAD_FILE, error) < 0 ||
        load_segments(&window, image, error) < 0)
        return -1;
    return 0;
}

int elf_image_query_abi(const struct byte_source *source, struct elf_image *image, struct elf_error *error)
{
    struct phdr_window window;
    uint64_t offset = 0;

    if (open_table(source, &window, image, error) < 0)
        return -1;
    return read_abi(&window, image, &offset, error);
}

int elf_image_query_manifest(const struct byte_source *source, struct elf_image *image,
                             struct elf_error *error)
{
    struct phdr_window window;

    if (open_table(source, &window, image, error) < 0)
        return -1;
    return load_manifest(&window, image, "Manifest validation failed", error);
}

/* Says how much memory would do, after the reason that is already there. */
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
    if (check_entry(image->entry, mem_bytes, ELF_TOO_LARGE, error) < 0)
        return refuse_too_large(image, error);
    for (uint32_t i = 0; i < image->segment_count; i++)
        if (check_file_bytes(&image->segments[i], mem_bytes, ELF_TOO_LARGE, error) < 0 ||
            check_memory_end(&image->segments[i], mem_bytes, ELF_TOO_LARGE, error) < 0)
            return refuse_too_large(image, error);
    if (image->bss_end > mem_bytes) {
        (void)refuse(error, ELF_TOO_LARGE, 0,
                     INVALID "program memory segment falls outside of valid range"
                             " (%llu (end of bss) > %llu (mem_size))",
                     (ull)image->bss_end, (ull)mem_bytes);
        return refuse_too_large(image, error);
    }
    return 0;
}
