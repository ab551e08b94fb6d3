/* What a machine is made from and why there is none, as plain data; Python has it through cffi
 * (bindings/python/native.h). */
#ifndef TENDER_MACHINE_TYPES_H
#define TENDER_MACHINE_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct elf_image;
struct mft;

/* <native:types> */

/* What a machine is made from. Devices and console are attached to its vm; open() gives it memory. */
struct machine_plan {
    const struct elf_image *image;
    const char *name; /* the image's, for lists */
    const struct mft *manifest;
    uint64_t mem_bytes;
    uint32_t ring_mode; /* enum vm_ring_mode: the one that is wanted; for open(), the one that there is */
    const char *cmdline;
    size_t cmdline_bytes;

    /* The library's: a template of start_state.h, with its call sites patched if the machine wants it so
     * (tender/backend); and the path of the program that confines itself. */
    int template_fd;
    const char *program;

    /* The command's, which has one thread, makes one machine and ends with it; NULL: it is the library.
     * load() copies the image's segments to `memory`; with `at_once` it makes the pages of a large one
     * together. find() gives a path in the package, the caller's to free. Neither returns an error. */
    void (*load)(uint8_t *memory, bool at_once);
    char *(*find)(const char *program);
    const struct machine_alone *alone; /* NULL: the command waits for its guest's end, and tells it */
};

struct machine_error {
    int32_t os_error;
    uint32_t step; /* of a set-up by steps: what failed */
    char code
        [16]; /* HostError.code of the library; empty: its default. It begins with the machine's name where
                      this host has none, and another one may be had */
    char text[512];
};

/* Which one is taken (vm/lifecycle.h). */
struct machine_choice {
    uint32_t tried;
    const char *title; /* of the first that could not be had, */
    char why[512];     /* and why; NULL and empty: none was tried in vain */
    char notice[768];  /* the same for a person, with what the one that is to be tried now means */
};

/* Steps of such a set-up beside those that its program tells of: the start of the process, and the memory
 * that is shared with it. */
#define SETUP_START  0
#define SETUP_SHARED 0xffffffff

/* </native:types> */

#endif
