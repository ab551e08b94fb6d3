/* The input for making a machine, and the error if that fails, as plain data. Python reads it through cffi
 * (bindings/python/native.h). */
#ifndef TENDER_MACHINE_TYPES_H
#define TENDER_MACHINE_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct elf_image;
struct mft;

/* <native:types> */

/* The input for making a machine. Devices and console are attached to its vm; open() gives the vm memory. */
struct machine_plan {
    const struct elf_image *image;
    const char *name; /* the image's name, for process lists */
    const char *path; /* its file, for a debugger: it lives as long as the machine. NULL: it has none */
    const struct mft *manifest;
    uint64_t mem_bytes;
    uint32_t
        debuggable; /* the process that runs the guest may be traced by any of its user, whatever Yama says */
    uint32_t flight_recorder; /* not 0: the last hypercalls are recorded from the start (core/trace.h) */
    uint32_t ring_mode;       /* enum vm_ring_mode: the requested one; in open(): the one in use */
    const char *cmdline;
    size_t cmdline_bytes;

    /* Set by the library: a template (start_state.h), with patched call sites if the machine needs them
     * (tender/backend); and the path of the program that confines itself. */
    int template_fd;
    const char *program;

    /* Set by the command, which has one thread, makes one machine and ends with it. NULL: the library makes
     * the machine. load() copies the image's segments to `memory`; with `at_once` it populates the pages of
     * a large image in one call. find() returns the path of a file in the package; the caller frees it.
     * Neither returns an error. */
    void (*load)(uint8_t *memory, bool at_once);
    char *(*find)(const char *program);
    const struct machine_alone *alone; /* NULL: the command waits for the guest's end, and reports it */
    int32_t observer; /* the process that will look at the guest after its end; 0: there is none */
};

struct machine_error {
    int32_t os_error;
    uint32_t step; /* the step that failed, where the set-up has steps */
    char code
        [16]; /* HostError.code of the library; empty: its default. It begins with the machine's name if this
                      host does not have the machine, and another machine may work */
    char text[512];
};

/* Which machine is used (vm/lifecycle.h). */
struct machine_choice {
    uint32_t tried;
    const char *title; /* of the first machine that is not available; NULL: none has failed */
    char why[512];     /* and why it is not; empty: none has failed */
    char notice[768];  /* the same for a person, and what the machine that is tried next means for them */
};

/* Steps of such a set-up that its program does not report: the start of the process, and the memory that is
 * shared with it. */
#define SETUP_START  0
#define SETUP_SHARED 0xffffffff

/* </native:types> */

#endif
