/* The process that looks into the guest's process at its end, for --core: observer.c. */
#ifndef TENDER_OBSERVER_H
#define TENDER_OBSERVER_H

#include <sys/types.h>

#include "observer_words.h"
#include "request.h"

/* Starts the observer if the request needs one, before the machine and the guest's memory are made. 0 or
 * -errno. If the directory cannot be used, Python says why. */
int observer_begin(const struct request *request);
/* The socket to it; -1: there is none. */
int observer_fd(void);
/* Its number; 0: there is none. */
pid_t observer_pid(void);
/* Tells it what to do, once; repeated calls do nothing. After OBSERVER_LOOK and OBSERVER_TIMEOUT it waits
 * until the observer has looked, and at a second signal no longer. It uses write() and ppoll(), which the
 * command's filter allows. */
void observer_tell(char word);

#endif
