/*
 * Reads the header, the program headers and the notes of a hostile ELF file, by position. It holds
 * for any unikernel. elf_image.c has the rules for segments. A guest ABI defines the meaning of
 * notes (hvt/hvt_image.c).
 */
#ifndef TENDER_ELF_FILE_H
#define TENDER_ELF_FILE_H

#include <elf.h>

#include "elf_image.h"

#define PHDR_CHUNK  64 /* 3584 bytes of stack; a table of 65535 headers takes 1024 reads */
#define ELF_INVALID "invalid executable: "

typedef unsigned long long ull; /* for %llu */

/* A file, with a part of its program header table, which can be too large for a stack. */
struct elf_file {
    const struct byte_source *source;
    uint64_t table_offset;
    uint32_t count;
    uint32_t first; /* phdr[] has the headers [first, first + held) */
    uint32_t held;
    Elf64_Phdr phdr[PHDR_CHUNK];
};

/* A kind of note to search for. */
struct elf_note_kind {
    const char *owner;
    uint32_t owner_bytes; /* including the NUL */
    uint32_t type;
    uint32_t align;
    uint32_t max_bytes;
    bool refuses_malformed; /* refuses any owner's note that is too short or ends after the end of the file */
};

struct elf_note {
    uint32_t phdr_index;
    uint32_t data_bytes; /* 1 up to the kind's maximum */
    uint64_t offset;     /* the note's offset in the file */
    uint32_t data_after; /* bytes from the note to its data */
};

/*
 * Both fill `error` and return -1. elf_refuse_read() is for a read that failed with -errno; the
 * caller adds the text of that error.
 */
int elf_refuse(struct elf_error *error, enum elf_error_code code, uint64_t offset, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
int elf_refuse_read(struct elf_error *error, uint64_t offset, int64_t result, const char *what);

/* Reads at offset + more. Returns the number of bytes that were there, or -errno. */
int64_t elf_read_at(const struct byte_source *source, uint64_t offset, uint64_t more, void *to, size_t len);

/*
 * Checks the header, and that the table of program headers can be read. Every use of a file begins
 * with it. It clears `image` and sets its entry.
 */
int elf_file_open(const struct byte_source *source, struct elf_file *file, struct elf_image *image,
                  struct elf_error *error);

/*
 * Returns header `index`, which must be below `count`, or NULL with `error` filled. The header is
 * valid until the next call.
 */
const Elf64_Phdr *elf_phdr(struct elf_file *file, uint32_t index, struct elf_error *error);

/*
 * Finds the first PT_NOTE whose first note is of this kind. Returns 1, 0 if there is none, or -1. Data starts
 * aligned from the start of the note, and that padding counts inside descsz.
 */
int elf_note_find(struct elf_file *file, const struct elf_note_kind *kind, struct elf_note *note,
                  struct elf_error *error);
/* Reads the note's data. `to` must have space for the kind's maximum minus the padding. */
int elf_note_read(const struct byte_source *source, const struct elf_note *note, void *to,
                  struct elf_error *error);

/* elf_image.c. They return 0, or -1 with `error` filled. The second checks against the 4 GiB limit. */
int elf_check_entry(uint64_t entry, uint64_t limit, enum elf_error_code code, struct elf_error *error);
int elf_segments_load(struct elf_file *file, struct elf_image *image, struct elf_error *error);

#endif
