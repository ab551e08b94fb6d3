/*
 * The signal that the death of a parent sends, if whoever started this process has asked for one
 * (PR_SET_PDEATHSIG): the kernel takes it away with a change of user, or with capabilities that are gained.
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

/* As it was before such a change. */
static inline void death_signal_keep(const struct death_signal *before)
{
    if (!before->number)
        return;
    (void)prctl(PR_SET_PDEATHSIG, before->number);
    if (getppid() != before->parent) /* it has died meanwhile */
        (void)kill(getpid(), before->number);
}

#endif
