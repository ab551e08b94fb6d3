/* The buffers of tender-sandbox and what they say to each other; each file's head tells what it is for. */
#ifndef TENDER_SANDBOX_PROGRAM_H
#define TENDER_SANDBOX_PROGRAM_H

#include "../config.h"
#include "hypercall.h"
#include "machine.h"

/* Where set-up can fail; vm_event.number of EVENT_SETUP_FAILED. vm/exit_report.c has the words. */
enum sandbox_step {
    STEP_GUEST_MEMORY = 1,
    STEP_SIGNALS = 2,
    STEP_LIMITS = 3,
    STEP_RIGHTS = 4,
    STEP_FILTER = 5,
    STEP_OUTER_FILTER = SANDBOX_STEP_OUTER_FILTER, /* never by the program */
};

struct auxiliary { /* what of the kernel's auxiliary vector is used */
    const uint8_t *vdso;
    bool fsgsbase; /* RDFSBASE and its kin are allowed */
};

/* main.c: the one VM of this process. */
extern struct vm the_vm;
extern struct auxiliary auxiliary;
_Noreturn void end_run(void); /* the event is filled: report it, wait to be killed */
void stop_soon(void);         /* the kick */
bool is_entered(void);        /* the guest's first instruction may have been executed */
void count_exit(void);
void handle_out(uint32_t port, uint32_t gpa, uint64_t rip);
_Noreturn void end_failed(enum sandbox_step, int64_t error); /* -errno */

/* The answer of a system call without which there is no guest. */
static inline void step_check(enum sandbox_step step, int64_t answer)
{
    if (answer < 0)
        end_failed(step, answer);
}

/* map.c */
void map_guest(const struct sandbox_config *config);

/* trap.c; `stops`: those that end a run, which a program without an observer hears itself. */
void traps_init(uint32_t kick_signal, const struct sandbox_alone *alone);

/* confine.c: from here on the filter is in force. Which of ISOLATION_OF_THE_PROGRAM stand. */
uint32_t confine(struct sandbox_config *config);

/* alone.c */
void alone_begin(const struct sandbox_alone *alone);
void alone_let_signals_in(void);
void alone_refuse_missing(uint32_t layers); /* which stand, of ISOLATION_OF_THE_PROGRAM; returns if all do */
void alone_network(void);                   /* an EVENT_NETWORK */
_Noreturn void alone_end(int stopped_by);   /* the event is filled; 0, or the signal that stopped the guest */
/* `in_a_call`: the signal came where the kernel's answer to a call had not been read yet. */
_Noreturn void alone_stop(int number, bool in_a_call, int64_t answer);

/* entry_x86_64.S */
_Noreturn void enter_guest(gpa_t entry, gpa_t stack, gpa_t argument);
void entry_patched(void);
void entry_gate(void);
void signal_return(void);
extern uint64_t guest_rip;
extern uint8_t handler_stack_top[];
extern uint32_t flags_by_popf;
extern const uint8_t signal_return_leaves[];

#endif
