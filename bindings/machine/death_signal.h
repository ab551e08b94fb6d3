/*
 * The signal that the kernel sends to this process when its parent dies, if one was requested with
 * PR_SET_PDEATHSIG before this program started. The kernel drops the request when the process changes
 * its user or gains capabilities.
 */
#ifndef TENDER_DEATH_SIGNAL_H
#define TENDER_DEATH_SIGNAL_H

#include <signal.h>
#include <sys/prctl.h>
#include <sys/types.h>
#include <unistd.h>

struct death_signal {
    int number; /* 0: none */
    pid_t parent;
};

static inline struct death_signal death_signal_now(void)
{
    struct death_signal now = {0, getppid()};
    (void)prctl(PR_GET_PDEATHSIG, &now.number);
    return now;
}

/* Restores the request after such a change. */
static inline void death_signal_keep(const struct death_signal *before)
{
    if (!before->number)
        return;
    (void)prctl(PR_SET_PDEATHSIG, before->number);
    if (getppid() != before->parent) /* the parent died in the meantime */
        (void)kill(getpid(), before->number);
}

#endif
