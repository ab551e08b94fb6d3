/*
 * How a run ended, in words: an event becomes a reason, a status and a line for a person. For the library and
 * for the launcher: the words stand here once. They are the contract's, where it has them.
 */
#ifndef TENDER_EXIT_REPORT_H
#define TENDER_EXIT_REPORT_H

#include <stdbool.h>

#include "exit_report_types.h"
#include "machine.h"
#include "vm_types.h"

/* The ends by number. */
#define EXIT_REASON(name, reason, status) REASON_##name,
enum exit_reason {
#include "exit_reasons.def"
};
/* The reason of an end and its status; NULL past the last. The format of that name in says.def, or NULL. */
const char *exit_reason_name(uint32_t end, int32_t *status);
const char *says_by_name(const char *asked);

/*
 * Fills `report` from an event that ends a run. `over_time`: what stopped it, if it was stopped, was a time
 * limit. Whatever the event holds, the message is one line; it fits (exit_report.c counts).
 */
void exit_report_fill(const struct vm_event *event, const struct machine_words *words, bool over_time,
                      enum told told, struct exit_report *report);

/* Who reads of an end at the command: its line, and ways out, which may be left unsaid. */
struct exit_reader {
    void (*line)(const char *text);
    void (*hint)(const char *text);
    const char *program; /* what the guest's process executes; NULL: it is that already */
};

/* An end as the command has told it. */
struct told_exit {
    const char *reason;
    int32_t status;
    char message[512]; /* empty for an ordinary end */
    /* Of a guest that was not started, as of an error of the library: its class, NULL: the guest has run. */
    const char *error, *code, *hint;
    int32_t os_error; /* -1: that class has none */
};

/* For the command: tells `reader` of the event that ended a run, and fills `told`. `stopped_by`: the signal
 * that stopped it, SIGALRM for its time limit, whose line is `time_over`; 0: none did. */
void exit_report_tell(const struct vm_event *event, const struct machine_words *words, int stopped_by,
                      const char *time_over, const struct exit_reader *reader, struct told_exit *told);
/* The same of a guest that is not run, for these isolation layers are missing. */
void exit_report_tell_missing(uint32_t missing, const struct machine_words *words,
                              const struct exit_reader *reader, struct told_exit *told);

/* The bytes of the guest's instruction, hexadecimal; empty: none could be read. */
struct code_words {
    char text[3 * sizeof(((struct vm_event *)0)->instruction) + 1];
};
struct code_words event_code(const struct vm_event *event);

#define EVENT_REGISTERS 19
/* Of an event that has registers: the name and the value of each, index 0 to EVENT_REGISTERS - 1. */
const char *event_register(const struct vm_event *event, uint32_t index, uint64_t *value);

/* What the sandbox's set-up was at when it failed (enum sandbox_step), NULL if there is no such step; and the
 * way out of this error at that step, empty if there is none. SETUP_START and SETUP_SHARED (machine_types.h)
 * have hints alone. */
const char *setup_step_name(uint32_t step);
const char *setup_step_hint(uint32_t step, int os_error, enum told told);

/* The name of the isolation layer 1 << `index` (core/layers.h), NULL past the last; and what to do where it
 * is missing around this machine. */
const char *isolation_name(uint32_t index);
const char *isolation_cure(uint32_t index, const struct machine_words *words, enum told told);

/* The name of a system call by the numbers of its entry (AUDIT_ARCH_I386 or any other), or "no such call". */
const char *system_call_name(uint32_t number, uint64_t arch);

#endif
