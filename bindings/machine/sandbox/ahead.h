/*
 * A sandbox begun ahead, by the command: see ahead.c. One a process, and no other thread.
 *
 * begin(), then spawn.h's sandbox_spawn_alone(), which finishes it; and end(), in any case and at any time
 * before the process ends. That nothing could be begun is no error: the sandbox is then made at once.
 */
#ifndef TENDER_SANDBOX_AHEAD_H
#define TENDER_SANDBOX_AHEAD_H

#include "child.h"

void sandbox_ahead_begin(void);

/* Kills and reaps what was begun and is not finished, and the helper. */
void sandbox_ahead_end(void);

/* For sandbox_spawn_alone(). `spawn` and `config` are filled; descriptors may still be taken from this
 * process's when it returns. */
enum ahead_end {
    AHEAD_NOTHING, /* nothing was begun, or it cannot be had this way; `spawn` and `config` are as before */
    AHEAD_DONE,    /* the program is executed: pid, pidfd and isolation of `spawn` are */
    AHEAD_FAILED,  /* spawn->error */
};
enum ahead_end sandbox_ahead_finish(struct spawn *spawn, struct sandbox_config *config);

#endif
