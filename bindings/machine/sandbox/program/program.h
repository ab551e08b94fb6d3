/* The parts of tender-sandbox and their interfaces; the head of each file says what the file is for. */
#ifndef TENDER_SANDBOX_PROGRAM_H
#define TENDER_SANDBOX_PROGRAM_H

#include "../config.h"
#include "hypercall.h"
#include "machine.h"

/* The steps of the set-up that can fail; vm_event.number of EVENT_SETUP_FAILED. vm/exit_report.c names
 * them. */
enum sandbox_step {
    STEP_GUEST_MEMORY = 1,
    STEP_SIGNALS = 2,
    STEP_LIMITS = 3,
    STEP_RIGHTS = 4,
    STEP_FILTER = 5,
    STEP_OUTER_FILTER = SANDBOX_STEP_OUTER_FILTER, /* the program itself never reports it */
};

struct auxiliary { /* the used parts of the kernel's auxiliary vector */
    const uint8_t *vdso;
    bool fsgsbase; /* RDFSBASE and related instructions are allowed */
};

/* main.c: the one VM of this process. */
extern struct vm the_vm;
extern struct auxiliary auxiliary;
_Noreturn void end_run(void); /* the event is filled: reports it, and waits to be killed */
void stop_soon(void);         /* for the kick */
bool is_entered(void);        /* whether the guest's first instruction may have been executed */
void count_exit(void);
void handle_out(uint32_t port, uint32_t gpa, uint64_t rip, uint64_t rsp);
_Noreturn void end_failed(enum sandbox_step, int64_t error); /* -errno */

/* Checks the answer of a system call without which the guest cannot run. */
static inline void step_check(enum sandbox_step step, int64_t answer)
{
    if (answer < 0)
        end_failed(step, answer);
}

/* map.c */
void map_guest(const struct sandbox_config *config);

/* trap.c; `alone`: a program without an observer also handles the signals that end a run. */
void traps_init(uint32_t kick_signal, const struct sandbox_alone *alone);

/* confine.c: installs the filter. Returns which layers of ISOLATION_OF_THE_PROGRAM are in force. */
uint32_t confine(struct sandbox_config *config);

/* alone.c */
void alone_begin(const struct sandbox_alone *alone);
void alone_let_signals_in(void);
/* `layers`: those of ISOLATION_OF_THE_PROGRAM that are in force. Returns only if no required layer is
 * missing. */
void alone_refuse_missing(uint32_t layers);
void alone_network(void);                 /* handles an EVENT_NETWORK */
_Noreturn void alone_end(int stopped_by); /* the event is filled; 0, or the signal that stopped the guest */
/* `in_a_call`: the signal arrived where the kernel's answer to a call had not been read yet. */
_Noreturn void alone_stop(int number, bool in_a_call, int64_t answer);

/* entry_x86_64.S */
_Noreturn void enter_guest(gpa_t entry, gpa_t stack, gpa_t argument);
void entry_patched(void);
void entry_gate(void);
void signal_return(void);
extern uint64_t guest_rsp, guest_rip;
extern uint8_t handler_stack_top[];
extern uint32_t flags_by_popf;
extern const uint8_t signal_return_leaves[];

#endif
