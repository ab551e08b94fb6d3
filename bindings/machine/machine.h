/*
 * A machine runs one guest: by hardware (machine/kvm), or as a confined process (machine/sandbox). The
 * command and the library know machines by this header alone; each is a row of machines.c, which a build may
 * leave out.
 *
 * The rule: nobody asks which machine it is. What differs is an operation, which may be NULL, or a value of
 * the row.
 *
 * Threads: one at a time, but for kick, isolation and read, which any may call while another is in run.
 */
#ifndef TENDER_MACHINE_H
#define TENDER_MACHINE_H

#include <stdbool.h>
#include <stddef.h>

#include "cpu_state.h"
#include "elf_image.h"
#include "layers.h"
#include "machine_types.h"
#include "output.h"
#include "vm.h"

#define MACHINE_OWN_BYTES 640

struct machine_ops;

struct machine {
    const struct machine_ops *ops; /* NULL: none yet */
    struct vm *vm;
    bool tells_its_end;  /* and refuses what `alone` requires, of layers that */
    uint32_t may_stand;  /* it could have */
    const char *program; /* that run() executes; NULL: none */
    /* The machine's; before open() zeros, or what the library has made of KVM's (kvm_ops.h). */
    _Alignas(16) uint8_t own[MACHINE_OWN_BYTES];
};

/*
 * A machine whose guest needs a process of its own takes the command's, if it may: run() then comes back only
 * with an event that ends the run before the guest has begun. What the command knows of an end goes with it.
 */
struct machine_alone {
    const char *program;               /* whom lines begin with */
    const char *const *(*words)(void); /* what a process list shows; the guest can read it */
    double timeout_s;                  /* 0: none; a timer of the process's sends SIGALRM */
    uint32_t required;                 /* enum isolation_layer: without these no guest is run */
    bool hints;
    bool deaf_to_interrupts;
    struct output (*errors)(void); /* stderr, as it is to be written */
    struct output report; /* how the run ended, for programs; fd -1: not wanted. If it cannot be written, */
    const char *report_name; /* its name in what is said; empty: nothing is */
    const char *image;       /* the file's name as given */
    uint64_t start_ns;       /* monotonic_ns() at the command's begin */
};

/* What the command's process still needs once it has given up its rights. */
struct confinement {
    bool stand_ins; /* another's filter is in force, and other calls are made in place of refused ones
                       (command/inherited_filter.c) */
    struct output outputs[2]; /* stderr and the report: what it writes; fd -1: none */
};

enum machine_look {
    MACHINE_LIKELY,
    MACHINE_ABSENT, /* open() will say why */
    MACHINE_UNFIT,  /* it may open and should not be taken unless asked for; the error says why */
};

/* How a machine is spoken of. */
struct machine_words {
    const char *title;    /* begins its messages */
    const char *run_call; /* the system call that a failed run() is blamed on, */
    const char *run_hint; /* and what is added where its error is EAGAIN */
    const char *instead;  /* said where it is taken for want of an earlier one */
    const char *const (
        *cures)[2]; /* by index of the isolation layer and enum told: the way out where it is missing */
};

struct machine_ops {
    const char *name; /* a word of --backend, and of VmResult.backend */
    const struct machine_words *words;
    bool serves_ring; /* a guest may be offered the network ring */

    /* What a look at the host tells, without a trial. NULL: it is always likely. */
    enum machine_look (*look)(struct machine_error *why);
    /* 0; or -1 with `error` filled and nothing left of it in `machine` and its vm. */
    int (*open)(struct machine *machine, const struct machine_plan *plan, struct machine_error *error);
    /* For the command: this process, in which the guest runs, gives up what it does not need, for good. Which
     * layers stand. NULL: the guest has a process of its own, and this one keeps its rights. */
    uint32_t (*confine)(struct machine *machine, const struct confinement *keeps);
    /* Which layers stand around a guest that was not confined by confine(): enum isolation_layer. */
    uint32_t (*isolation)(struct machine *machine);

    /* Until somebody must decide; vm->event says what. */
    void (*run)(struct machine *machine);
    /* run() comes back soon. A signal handler may call it. NULL: a stop that vm.h knows of is enough. */
    void (*kick)(struct machine *machine);
    /* The guest's process stands still, and goes on. A signal handler may call it. NULL: it is ours. */
    void (*pause)(struct machine *machine, bool paused);
    /* That process, -1 when it is gone. NULL: it is ours. */
    int (*pid)(const struct machine *machine);

    /* The processor's state while run() is not under way: 0 or -errno. get: state->known says what is known
     * of what was asked for; -ENODATA, nothing. set: NULL, it takes none but the start state. */
    int (*get_cpu_state)(struct machine *machine, uint32_t parts, struct cpu_state *state);
    int (*set_cpu_state)(struct machine *machine, uint32_t parts, const struct cpu_state *state);

    /* Guest memory [gpa, gpa + len), which is the guest's: how many bytes were copied, or -errno. Text is not
     * written: -EFAULT. */
    int64_t (*read)(struct machine *machine, gpa_t gpa, void *to, uint64_t len);
    int64_t (*write)(struct machine *machine, gpa_t gpa, const void *from, uint64_t len);
    /* The bytes of an EVENT_CONSOLE. */
    const void *(*console)(struct machine *machine, const struct vm_event *event);
    /* What the guest will be told; until the first run it may be said again. */
    void (*write_boot_info)(struct machine *machine, const struct machine_plan *plan);

    /* Before the first run, this machine will be reset(); with the template that it was made from. Both NULL:
     * it cannot be. 0 or -errno; after a failed reset() it is only to be closed. */
    int (*keep)(struct machine *machine, int template_fd);
    int (*reset)(struct machine *machine);

    /* Gives everything back but the vm. In a fork of the process that opened it, copies alone. */
    void (*close)(struct machine *machine);
    /* In place of close() for a command that ends: the last thing but exit. NULL: close() is quick. */
    void (*leave)(struct machine *machine);
};

/* In the order in which "auto" tries them; NULL at the end. */
extern const struct machine_ops *const machines[];

/* NULL: there is no such machine in this build. */
const struct machine_ops *machine_by_name(const char *name);

#endif
