/*
 * How a run ended, in words: an event becomes a reason, a status and a line for a person. The library and the
 * launcher both use these texts. Where the contract defines a text, it is the contract's.
 */
#ifndef TENDER_EXIT_REPORT_H
#define TENDER_EXIT_REPORT_H

#include <stdbool.h>

#include "exit_report_types.h"
#include "machine.h"
#include "vm_types.h"

/* The exit reasons by number. */
#define EXIT_REASON(name, reason, status) REASON_##name,
enum exit_reason {
#include "exit_reasons.def"
};
/* Returns the name of an exit reason, and its status; NULL past the last. */
const char *exit_reason_name(uint32_t end, int32_t *status);
/* Returns the format of that name in says.def, or NULL. */
const char *says_by_name(const char *asked);

/*
 * Fills `report` from an event that ends a run. `over_time`: if the run was stopped, a time limit stopped it.
 * The message is one line, whatever the event contains. It always fits (exit_report.c has the lengths).
 */
void exit_report_fill(const struct vm_event *event, const struct machine_words *words, bool over_time,
                      enum told told, struct exit_report *report);

/* Where the command writes the end of a run: one line, and hints, which may be left out. */
struct exit_reader {
    void (*line)(const char *text);
    void (*hint)(const char *text);
    const char *program; /* the program that the guest's process executes; NULL: it already has */
};

/* The end of a run as the command has reported it. */
struct told_exit {
    const char *reason;
    int32_t status;
    char message[512]; /* empty for an ordinary end */
    /* For a guest that was not started, as in an error of the library. error: the exception's class, NULL:
     * the guest has run. */
    const char *error, *code, *hint;
    int32_t os_error; /* -1: that class has none */
};

/* For the command: reports the event that ended a run to `reader`, and fills `told`. `stopped_by`: the signal
 * that stopped the run, 0: none did. SIGALRM is the time limit's signal; its message is `time_over`. */
void exit_report_tell(const struct vm_event *event, const struct machine_words *words, int stopped_by,
                      const char *time_over, const struct exit_reader *reader, struct told_exit *told);
/* The same for a guest that is not started because these isolation layers are missing. */
void exit_report_tell_missing(uint32_t missing, const struct machine_words *words,
                              const struct exit_reader *reader, struct told_exit *told);

/* Whether the end was abnormal: an abort, a fault, what no guest may do, the time limit, or SIGQUIT. Then
 * an observer looks at what is left of the guest. SIGINT and SIGTERM are a person's or a manager's wish, and
 * of a process that was killed nothing is left. */
bool exit_is_abnormal(const struct vm_event *event, int stopped_by);

/* The bytes of the guest's instruction in hexadecimal; empty: none could be read. */
struct code_words {
    char text[3 * sizeof(((struct vm_event *)0)->instruction) + 1];
};
struct code_words event_code(const struct vm_event *event);

#define EVENT_REGISTERS 19
/* The name and the value of one register of an event that has registers; index 0 to EVENT_REGISTERS - 1. */
const char *event_register(const struct vm_event *event, uint32_t index, uint64_t *value);

/* The name of a step of the sandbox's set-up (enum sandbox_step), NULL if there is no such step. The hint
 * says what to do about this error at this step, empty if nothing is known. SETUP_START and SETUP_SHARED
 * (machine_types.h) have hints only. */
const char *setup_step_name(uint32_t step);
const char *setup_step_hint(uint32_t step, int os_error, enum told told);

/* The name of the isolation layer 1 << `index` (machine/layers.h), NULL past the last; and what to do if this
 * machine lacks it. */
const char *isolation_name(uint32_t index);
const char *isolation_cure(uint32_t index, const struct machine_words *words, enum told told);

/* The name of a system call. `arch` selects the table: AUDIT_ARCH_I386, or any other. Or "no such call". */
const char *system_call_name(uint32_t number, uint64_t arch);

#endif
