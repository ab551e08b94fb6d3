/*
 * A hostile ELF file, read by position: its header, its program headers and its notes, whatever unikernel's
 * it is. What the segments must be is elf_image.c's; what the notes mean, a guest ABI's (hvt/hvt_image.c).
 */
#ifndef TENDER_ELF_FILE_H
#define TENDER_ELF_FILE_H

#include <elf.h>

#include "elf_image.h"

#define PHDR_CHUNK  64 /* 3584 bytes of stack; a table of 65535 headers takes 1024 reads */
#define ELF_INVALID "invalid executable: "

typedef unsigned long long ull; /* for %llu */

/* A file on the program header table, which can be larger than what may stand on a stack. */
struct elf_file {
    const struct byte_source *source;
    uint64_t table_offset;
    uint32_t count;
    uint32_t first; /* the file holds [first, first + held) */
    uint32_t held;
    Elf64_Phdr phdr[PHDR_CHUNK];
};

/* A note that is looked for. */
struct elf_note_kind {
    const char *owner;
    uint32_t owner_bytes; /* with the NUL */
    uint32_t type;
    uint32_t align;
    uint32_t max_bytes;
    bool minds_others; /* refuses a note of anybody's that is too short or past the end of the file */
};

struct elf_note {
    uint32_t phdr_index;
    uint32_t data_bytes; /* 1 up to the maximum asked for */
    uint64_t offset;     /* of the note in the file */
    uint32_t data_after; /* bytes from there to the data */
};

/* Fills `error`; -1. elf_refuse_read(): of a read that failed with -errno, whose words the caller adds. */
int elf_refuse(struct elf_error *error, enum elf_error_code code, uint64_t offset, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
int elf_refuse_read(struct elf_error *error, uint64_t offset, int64_t result, const char *what);

/* How many bytes there were at offset + more, or -errno. */
int64_t elf_read_at(const struct byte_source *source, uint64_t offset, uint64_t more, void *to, size_t len);

/* The header and a readable table of program headers: what every question to a file begins with. `image` is
 * emptied, and gets its entry. */
int elf_file_open(const struct byte_source *source, struct elf_file *file, struct elf_image *image,
                  struct elf_error *error);

/* Header `index`, valid until the next call, or NULL with `error` filled; `index` is below `count`. */
const Elf64_Phdr *elf_phdr(struct elf_file *file, uint32_t index, struct elf_error *error);

/*
 * Finds the first PT_NOTE whose first note is of this kind. Returns 1, 0 if there is none, or -1. Data starts
 * aligned from the start of the note, and that padding counts inside descsz.
 */
int elf_note_find(struct elf_file *file, const struct elf_note_kind *kind, struct elf_note *note,
                  struct elf_error *error);
/* Reads the note's data; `to` has space for the kind's maximum, less padding. */
int elf_note_read(const struct byte_source *source, const struct elf_note *note, void *to,
                  struct elf_error *error);

/* elf_image.c: 0, or -1 with `error` filled; against the 4 GiB limit. */
int elf_check_entry(uint64_t entry, uint64_t limit, enum elf_error_code code, struct elf_error *error);
int elf_segments_load(struct elf_file *file, struct elf_image *image, struct elf_error *error);

#endif
