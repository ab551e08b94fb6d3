/*
 * See elf_file.h. The file may change between two reads. But only checked values are used later,
 * because they are kept in `struct elf_image` and are never read twice.
 */
#include "elf_file.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "headers are used as they are in the file");
_Static_assert(sizeof(((struct elf_error *)0)->text) == ELF_ERROR_TEXT_BYTES, "space for the text");

#if defined(__x86_64__)
#define HOST_MACHINE EM_X86_64
#elif defined(__aarch64__)
#define HOST_MACHINE EM_AARCH64
#else
#error "no unikernels exist for this machine"
#endif

int elf_refuse(struct elf_error *error, enum elf_error_code code, uint64_t offset, const char *format, ...)
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

int elf_refuse_read(struct elf_error *error, uint64_t offset, int64_t result, const char *what)
{
    (void)elf_refuse(error, ELF_BAD_FILE, offset, "%s could not be read", what);
    error->os_error = (int32_t)-result;
    return -1;
}

int64_t elf_read_at(const struct byte_source *source, uint64_t offset, uint64_t more, void *to, size_t len)
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
        return elf_refuse_read(error, 0, got, "elf header");
    if (got != sizeof *header)
        return elf_refuse(error, ELF_BAD_FILE, 0,
                          ELF_INVALID "elf header does not match the expected size (%llu != %zu)", (ull)got,
                          sizeof *header);

    /*
     * Not checked, because they vary between toolchains: OSABI, the ABI version, the version in
     * e_ident, flags and section headers.
     */
    bool valid = memcmp(header->e_ident, ELFMAG, SELFMAG) == 0 && header->e_ident[EI_CLASS] == ELFCLASS64 &&
                 header->e_ident[EI_DATA] == ELFDATA2LSB && header->e_version == EV_CURRENT &&
                 header->e_ehsize == sizeof *header && header->e_phnum >= 1 &&
                 header->e_phentsize == sizeof(Elf64_Phdr) && header->e_type == ET_EXEC &&
                 header->e_machine == HOST_MACHINE;
    if (!valid)
        return elf_refuse(error, ELF_BAD_FILE, 0,
                          ELF_INVALID
                          "invalid or unsupported executable (elf header invalid while loading note)");
    return 0;
}

const Elf64_Phdr *elf_phdr(struct elf_file *file, uint32_t index, struct elf_error *error)
{
    if (index >= file->first && index - file->first < file->held)
        return &file->phdr[index - file->first];

    uint32_t left = file->count - index;
    uint32_t held = left < PHDR_CHUNK ? left : PHDR_CHUNK;
    size_t len = held * sizeof(Elf64_Phdr);
    uint64_t before = index * sizeof(Elf64_Phdr);
    int64_t got = elf_read_at(file->source, file->table_offset, before, file->phdr, len);

    file->first = index;
    file->held = 0;
    if (got < 0) {
        (void)elf_refuse_read(error, file->table_offset, got, "program header");
        return NULL;
    }
    if ((uint64_t)got != len) {
        (void)elf_refuse(error, ELF_BAD_FILE, file->table_offset,
                         ELF_INVALID
                         "program header does not match the expected size (%llu != %llu while loading note)",
                         (ull)(before + (uint64_t)got), (ull)(file->count * sizeof(Elf64_Phdr)));
        return NULL;
    }
    file->held = held;
    return &file->phdr[0];
}

static int check_table_is_readable(struct elf_file *file, struct elf_error *error)
{
    for (uint32_t i = 0; i < file->count; i += PHDR_CHUNK)
        if (elf_phdr(file, i, error) == NULL)
            return -1;
    return 0;
}

int elf_note_find(struct elf_file *file, const struct elf_note_kind *kind, struct elf_note *note,
                  struct elf_error *error)
{
    struct {
        Elf64_Nhdr h;
        char name[8];
    } header;
    _Static_assert(sizeof header == HVT_NOTE_HEADER_BYTES, "note header");

    for (uint32_t i = 0; i < file->count; i++) {
        const Elf64_Phdr *phdr = elf_phdr(file, i, error);
        if (phdr == NULL)
            return -1;
        if (phdr->p_type != PT_NOTE)
            continue;
        if (phdr->p_filesz < sizeof header.h && kind->refuses_malformed)
            return elf_refuse(error, ELF_BAD_NOTE, phdr->p_offset,
                              ELF_INVALID
                              "phdr[%u].p_filesz note does not fall within valid size (%llu < %zu)",
                              i, (ull)phdr->p_filesz, sizeof header.h);
        if (phdr->p_filesz < sizeof header)
            continue; /* too short to be the wanted note */

        int64_t got = elf_read_at(file->source, phdr->p_offset, 0, &header, sizeof header);
        if (got < 0)
            return elf_refuse_read(error, phdr->p_offset, got, "note header");
        if (got != sizeof header && kind->refuses_malformed)
            return elf_refuse(error, ELF_BAD_NOTE, phdr->p_offset,
                              "phdr[%u] bytes read mismatches note size (%llu != %zu)", i, (ull)got,
                              sizeof header);
        if (got != sizeof header || header.h.n_namesz != kind->owner_bytes ||
            memcmp(header.name, kind->owner, kind->owner_bytes) != 0 || header.h.n_type != kind->type)
            continue;

        uint32_t descsz = header.h.n_descsz;
        uint32_t padding = -(uint32_t)sizeof header & (kind->align - 1);
        if (descsz < 1 || descsz > kind->max_bytes)
            return elf_refuse(error, ELF_BAD_NOTE, phdr->p_offset,
                              ELF_INVALID "phdr[%u] note does not fall within valid size (%u < 1 || %u > %u)",
                              i, descsz, descsz, kind->max_bytes);
        if (phdr->p_filesz < sizeof header + (uint64_t)descsz)
            return elf_refuse(error, ELF_BAD_NOTE, phdr->p_offset,
                              ELF_INVALID "phdr[%u] note does not fall within valid size (%llu < %llu)", i,
                              (ull)phdr->p_filesz, (ull)(sizeof header + (uint64_t)descsz));
        if (descsz <= padding) /* Solo5 prints "INV_EXE" here, and users grep for it */
            return elf_refuse(
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

int elf_note_read(const struct byte_source *source, const struct elf_note *note, void *to,
                  struct elf_error *error)
{
    int64_t got = elf_read_at(source, note->offset, note->data_after, to, note->data_bytes);
    if (got < 0)
        return elf_refuse_read(error, note->offset, got, "note");
    if ((uint64_t)got != note->data_bytes)
        return elf_refuse(error, ELF_BAD_NOTE, note->offset,
                          "phdr[%u] bytes read mismatches note size (%llu != %u)", note->phdr_index, (ull)got,
                          note->data_bytes);
    return 0;
}

int elf_file_open(const struct byte_source *source, struct elf_file *file, struct elf_image *image,
                  struct elf_error *error)
{
    Elf64_Ehdr header;

    memset(image, 0, offsetof(struct elf_image, segments));
    image->manifest.entries =
        0; /* segments and entries are not cleared, because that would touch their pages */
    memset(error, 0, sizeof *error);
    if (read_header(source, &header, error) < 0)
        return -1;

    image->entry = header.e_entry;
    file->source = source;
    file->table_offset = header.e_phoff;
    file->count = header.e_phnum;
    file->first = 0;
    file->held = 0;
    return check_table_is_readable(file, error);
}
