/*
 * Headers, segments and notes of a unikernel ELF: the acceptance rules of the hvt contract.
 *
 * The file is hostile. Nothing is mapped: every byte is read through a byte_source, so a file that
 * shrinks while it is read becomes an error and not a signal. All loops are bounded by the constants here.
 * Loading (copying segments into a template) is start_state.c; matching devices is Python's.
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
    uint8_t bytes[2048]; /* a header and its table are in one, and so are most images' notes */
};

/* Reads up to `len` bytes at `offset`; returns how many there were, or -errno. */
struct byte_source {
    int64_t (*read_at)(const struct byte_source *self, uint64_t offset, void *to, size_t len);
    /* The first piece of [offset, end) that is no hole: sets [*start, *stop) and returns true; false if all
     * of it is one. What cannot tell holes calls everything data. NULL: there are no holes. */
    bool (*data_in)(const struct byte_source *self, uint64_t offset, uint64_t end, uint64_t *start,
                    uint64_t *stop);
    const void *bytes; /* memory sources */
    uint64_t size;
    struct byte_window *window; /* windowed file sources */
    int fd;                     /* file sources */
};

struct byte_source byte_source_memory(const void *bytes, size_t size);
struct byte_source byte_source_file(int fd);
/* The same with fewer calls for who reads many small pieces; not for two threads. `window` stays the
 * caller's. */
struct byte_source byte_source_window(struct byte_window *window, int fd);

/*
 * Parses and checks everything that does not depend on the size of memory (against the 4 GiB limit).
 * Returns 0, or -1 with `error` filled; `image` is then undefined.
 */
int elf_image_parse(const struct byte_source *source, struct elf_image *image, struct elf_error *error);

/*
 * What a file for this machine says of itself, for whatever target and whether it can be loaded or not: sets
 * abi_target and abi_version alone, or the manifest alone. Returns 0 or -1 as above.
 */
int elf_image_query_abi(const struct byte_source *source, struct elf_image *image, struct elf_error *error);
int elf_image_query_manifest(const struct byte_source *source, struct elf_image *image,
                             struct elf_error *error);

/*
 * Checks entry, segments and bss against `mem_bytes` (M: what the guest sees). Returns 0 or -1 as above.
 */
int elf_image_fits(const struct elf_image *image, uint64_t mem_bytes, struct elf_error *error);

#endif
