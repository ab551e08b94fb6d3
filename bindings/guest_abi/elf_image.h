/*
 * Headers, segments and notes of a unikernel's ELF file: the acceptance rules of the hvt contract.
 *
 * The file is hostile. Nothing is mapped: every byte is read through a byte_source, so that a file
 * that shrinks while it is read causes an error and not a signal. The constants here bound all
 * loops. start_state.c loads the segments into a template, and Python matches the devices.
 */
#ifndef TENDER_ELF_IMAGE_H
#define TENDER_ELF_IMAGE_H

#include <stdbool.h>
#include <stddef.h>

#include "elf_image_types.h"

/* The piece of a file that was read last. */
struct byte_window {
    uint64_t start;
    size_t held;
    uint8_t bytes[2048]; /* one window has the header and its table, and for most images the notes */
};

/* Where the bytes of an ELF come from. */
struct byte_source {
    /* Reads up to `len` bytes at `offset`. Returns the number of bytes that were there, or -errno. */
    int64_t (*read_at)(const struct byte_source *self, uint64_t offset, void *to, size_t len);
    /*
     * Finds the first part of [offset, end) that is not a hole: sets [*start, *stop) and returns
     * true. Returns false if all of it is a hole. A source that cannot find holes treats everything
     * as data. NULL: there are no holes.
     */
    bool (*data_in)(const struct byte_source *self, uint64_t offset, uint64_t end, uint64_t *start,
                    uint64_t *stop);
    const void *bytes; /* memory sources */
    uint64_t size;
    struct byte_window *window; /* windowed file sources */
    int fd;                     /* file sources */
};

struct byte_source byte_source_memory(const void *bytes, size_t size);
struct byte_source byte_source_file(int fd);
/*
 * The same, with fewer system calls for a caller that reads many small pieces. Not for two threads.
 * The caller owns `window`.
 */
struct byte_source byte_source_window(struct byte_window *window, int fd);

/*
 * Parses and checks everything that does not depend on the size of memory, against the 4 GiB limit.
 * Returns 0, or -1 with `error` filled; `image` is then undefined.
 */
int elf_image_parse(const struct byte_source *source, struct elf_image *image, struct elf_error *error);

/*
 * Read only the ABI note (abi_target and abi_version), or only the manifest, of a file for this
 * machine. The file may be for any target, and need not be loadable. They return 0 or -1 as above.
 */
int elf_image_query_abi(const struct byte_source *source, struct elf_image *image, struct elf_error *error);
int elf_image_query_manifest(const struct byte_source *source, struct elf_image *image,
                             struct elf_error *error);

/*
 * Checks entry, segments and bss against `mem_bytes`, the memory that the guest sees. Returns 0 or
 * -1 as above.
 */
int elf_image_fits(const struct elf_image *image, uint64_t mem_bytes, struct elf_error *error);

#endif
