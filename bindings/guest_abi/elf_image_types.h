/* A parsed unikernel as plain data. Python reads it through cffi (bindings/python/native.h). */
#ifndef TENDER_ELF_IMAGE_TYPES_H
#define TENDER_ELF_IMAGE_TYPES_H

#include "vm_types.h"

/* <native:types> */

#define ELF_IMAGE_SEGMENTS_MAX 128 /* loadable segments; real unikernels have about six */
#define ELF_IMAGE_BUILD_ID_MAX 64
#define ELF_ERROR_TEXT_BYTES   256

/* One PT_LOAD that has bytes in the file. [start, end) is page-aligned and has the rights `flags`. */
struct elf_segment {
    gpa_t start;
    gpa_t end;
    gpa_t vaddr;
    uint64_t file_offset;
    uint64_t file_bytes;
    uint64_t mem_bytes;
    uint32_t flags;
    uint32_t index; /* in the program header table, for messages */
};

struct elf_image {
    gpa_t entry;
    gpa_t kernel_end; /* highest end of a segment with file bytes; 0 if there is none */
    gpa_t bss_end;    /* highest end of any PT_LOAD, including those without file bytes */
    uint32_t segment_count;
    uint32_t abi_target;
    uint32_t abi_version;
    uint32_t mft_bytes; /* 8 + 104 * manifest.entries */
    uint32_t
        extensions; /* TENDER_FEATURE_ bits that the image wants and this tender knows; 0 without the note */
    struct elf_segment segments[128];
    struct mft manifest; /* the unions are cleared: only names and types come from the file */
};

/* The reason why a file was refused, in the contract's words, without the file's name. */
struct elf_error {
    int32_t code;     /* enum elf_error_code */
    int32_t os_error; /* errno of a failed read, otherwise 0 */
    uint64_t offset;  /* the place in the file, or 0 if the error has no place */
    char text[256];   /* NUL-terminated */
};

enum elf_error_code {
    ELF_OK = 0,
    ELF_BAD_FILE = 1, /* not readable, not an ELF, not for this machine, bad program headers or segments */
    ELF_BAD_NOTE = 2, /* a hostile note */
    ELF_BAD_ABI = 3,  /* no ABI note, another target, another version */
    ELF_BAD_MANIFEST = 4, /* no manifest, or an invalid one */
    ELF_TOO_LARGE = 5,    /* the image does not fit into the given memory */
};

/* </native:types> */

#endif
