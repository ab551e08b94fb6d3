/*
 * The state before the first instruction, as data: the registers, and a template of memory that
 * every VM of an image maps privately. To boot is to restore this state.
 *
 *   template, from gpa 0:   0x1000 GDT   0x2000 page tables (as section 7 of the contract)
 *                           0x10000 .. 0xff000 zero: each VM writes its boot info there
 *                           0xff000 gate page, 0xffe00 extension block   (zero if the image does not ask)
 *                           0x100000 .. kernel_end segments
 */
#ifndef TENDER_START_STATE_H
#define TENDER_START_STATE_H

#include "cpu_state.h"
#include "elf_image.h"

/*
 * In a segment of at least this size, holes are searched, which takes one or two system calls for
 * each part. A smaller segment is read whole.
 */
#define START_STATE_SPARSE_MIN (512u << 10)

/* Space for boot info, manifest and command line, in whole pages. */
#define START_STATE_BOOT_BYTES 0x4000u

/*
 * Sets the general and system registers for `mem_bytes` of memory, by section 7 of the contract.
 * The other parts of the state are as after a reset. Every machine starts its guest from this
 * state.
 */
void start_state_registers(gpa_t entry, uint64_t mem_bytes, struct cpu_state *state);

/* Returns the size of the template: kernel_end rounded up to a page, but at least HVT_GUEST_MIN_GPA. */
uint64_t start_state_template_bytes(const struct elf_image *image);

/*
 * Writes GDT and page tables for `mapped_bytes` of guest memory (a multiple of 2 MiB, at most 4
 * GiB) into `low`, which has HVT_GUEST_MIN_GPA bytes and zeroed tables. For `extensions`
 * (elf_image.extensions) it also writes the extension block and the gate page.
 */
void start_state_write_tables(uint8_t *low, uint64_t mapped_bytes, uint32_t extensions);

/* Writes only the extension block and the gate page, for a backend without tables below boot info. */
void start_state_write_extension(uint8_t *low, uint32_t extensions);

/*
 * Copies the segments' file bytes into `template_fd` (a memfd that already has the template's
 * size), at their gpa. Returns 0, or -1 with `error` filled ("host file segment mismatched" for a
 * file that became shorter).
 */
int start_state_load_segments(const struct elf_image *image, const struct byte_source *source,
                              int template_fd, struct elf_error *error);

/* Whether no part of the segment is a hole in the file, so that loading writes all of its pages. */
bool start_state_is_whole(const struct elf_segment *segment, const struct byte_source *source);

/*
 * The same as start_state_load_segments(), into `memory`: zeroed pages from gpa 0, at least
 * start_state_template_bytes() of them.
 */
int start_state_load_segments_at(const struct elf_image *image, const struct byte_source *source,
                                 uint8_t *memory, struct elf_error *error);

/*
 * Writes boot info, a copy of the manifest and the command line to `boot_info`, the
 * START_STATE_BOOT_BYTES of memory that the guest finds at HVT_BOOT_INFO_GPA. That memory is
 * zeroed, or an earlier call for this image wrote it; then nothing of the earlier command line
 * remains. `manifest` has its attached flags and parameters filled in. `net_ring` is the ring's
 * address, or 0 if none is offered. `cmdline_bytes` excludes the NUL and is below
 * HVT_CMDLINE_BYTES.
 */
void start_state_write_boot_info(uint8_t *boot_info, const struct elf_image *image,
                                 const struct mft *manifest, uint64_t mem_bytes, uint64_t tsc_hz,
                                 gpa_t net_ring, const char *cmdline, size_t cmdline_bytes);

#endif
