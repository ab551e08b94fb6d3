/*
 * A machine runs one guest: by hardware (machine/kvm), or as a confined process (machine/sandbox). The
 * command and the library know machines through this header only. Each machine is a row of machines.c; a
 * build may leave one out.
 *
 * The rule: no caller asks which machine it has. A difference between machines is an operation, which may
 * be NULL, or a value in the row.
 *
 * Threads: one thread at a time uses a machine. The exceptions are kick, isolation and read: any thread may
 * call them while another thread is in run.
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
    /* The guest's process reports its own end, and refuses to start without the layers `alone->required`. */
    bool reports_own_end;
    uint32_t possible_layers; /* the layers that the guest's process could have */
    const char *program;      /* the program that run() executes; NULL: none */
    /* The machine's own state. Before open(): zeros, or what the library has prepared for KVM (kvm_ops.h). */
    _Alignas(16) uint8_t own[MACHINE_OWN_BYTES];
};

/*
 * A machine whose guest needs a process of its own may turn the command's process into it. run() then returns
 * only with an event that ends the run before the guest has started. This structure carries what the command
 * knows about reporting the end.
 */
struct machine_alone {
    const char *program;               /* the name that messages begin with */
    const char *const *(*words)(void); /* the argv that a process list shows; the guest can read it */
    double timeout_s;                  /* 0: none; a timer of the process sends SIGALRM */
    uint32_t required;                 /* enum isolation_layer: without these the guest is not started */
    bool hints;
    bool ignores_interrupts;
    struct output (*errors)(void); /* stderr, and how to write to it */
    struct output report;          /* the report for programs; fd -1: not wanted */
    const char *report_name;       /* its name, for the message if it cannot be written; empty: no message */
    const char *image;             /* the file's name as given */
    uint64_t start_ns;             /* monotonic_ns() when the command started */
    int observer_fd;               /* the socket to the observer of the end (observer_words.h); -1: none */
};

/* What the command's process still needs after it has given up its rights. */
struct confinement {
    /* An inherited seccomp filter is in force. The calls that it refuses are replaced by other calls
     * (command/inherited_filter.c). */
    bool replaces_calls;
    struct output outputs[2]; /* stderr and the report, which the process still writes; fd -1: none */
    int observer_fd;          /* likewise the socket to the observer of the end; -1: there is none */
};

enum machine_look {
    MACHINE_LIKELY,
    MACHINE_ABSENT, /* open() will tell the reason */
    MACHINE_UNFIT,  /* it may open, but should be used only on request; the error holds the reason */
};

/* The machine's texts for messages. */
struct machine_words {
    const char *title;    /* its messages begin with it */
    const char *run_call; /* the system call that is named when run() fails */
    const char *run_hint; /* added if the error of run() is EAGAIN */
    const char *instead;  /* the message when this machine is used because an earlier one is not available */
    const char *const (
        *cures)[2]; /* by index of the isolation layer and enum told: the way out if it is missing */
};

struct machine_ops {
    const char *name; /* a word of --backend, and of VmResult.backend */
    const struct machine_words *words;
    bool serves_ring; /* a guest may be offered the network ring */

    /* Looks at the host, without a trial. NULL: the machine is always likely. */
    enum machine_look (*look)(struct machine_error *why);
    /* 0; or -1 with `error` filled, and nothing left in `machine` and its vm. */
    int (*open)(struct machine *machine, const struct machine_plan *plan, struct machine_error *error);
    /* For the command: this process, in which the guest runs, permanently gives up the rights that it does
     * not need. Returns the layers in force. NULL: the guest has its own process, and this process keeps its
     * rights. */
    uint32_t (*confine)(struct machine *machine, const struct confinement *keeps);
    /* The layers around a guest that was not confined by confine(): enum isolation_layer. */
    uint32_t (*isolation)(struct machine *machine);

    /* Runs until the caller must decide; vm->event says why. */
    void (*run)(struct machine *machine);
    /* Makes run() return soon. A signal handler may call it. NULL: the stop request of vm.h is enough. */
    void (*kick)(struct machine *machine);
    /* Stops or continues the guest's process. A signal handler may call it. NULL: the guest runs in this
     * process. */
    void (*pause)(struct machine *machine, bool paused);
    /* The guest's process, -1 when it is gone. NULL: the guest runs in this process. */
    int (*pid)(const struct machine *machine);

    /* The processor's state while run() is not active: 0 or -errno. get: state->known says which of the
     * requested parts are known; -ENODATA: none. set: NULL: only the start state can be used. */
    int (*get_cpu_state)(struct machine *machine, uint32_t parts, struct cpu_state *state);
    int (*set_cpu_state)(struct machine *machine, uint32_t parts, const struct cpu_state *state);

    /* Copies guest memory [gpa, gpa + len), which must lie in the guest. Returns the number of bytes copied,
     * or -errno. Text is not written: -EFAULT. */
    int64_t (*read)(struct machine *machine, gpa_t gpa, void *to, uint64_t len);
    int64_t (*write)(struct machine *machine, gpa_t gpa, const void *from, uint64_t len);
    /* The bytes of an EVENT_CONSOLE. */
    const void *(*console)(struct machine *machine, const struct vm_event *event);
    /* Writes what the guest reads at its start. It may be written again until the first run. */
    void (*write_boot_info)(struct machine *machine, const struct machine_plan *plan);

    /* keep, before the first run: this machine will be reset(). It gets the template that the machine was
     * made from. reset: back to the start state. Both NULL: this machine cannot be reset. 0 or -errno; after
     * a failed reset() it can only be closed. */
    int (*keep)(struct machine *machine, int template_fd);
    int (*reset)(struct machine *machine);

    /* Releases everything except the vm. In a fork of the process that opened the machine, it releases only
     * the copies. */
    void (*close)(struct machine *machine);
    /* Replaces close() for a command that ends: the last call before exit. NULL: close() is quick. */
    void (*leave)(struct machine *machine);
};

/* In the order in which "auto" tries them; NULL at the end. */
extern const struct machine_ops *const machines[];

/* NULL: this build has no such machine. */
const struct machine_ops *machine_by_name(const char *name);

#endif
