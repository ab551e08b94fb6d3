/* What the guest's process and the observer of its end say to each other: command/observer.c. */
#ifndef TENDER_OBSERVER_WORDS_H
#define TENDER_OBSERVER_WORDS_H

#define OBSERVER_LOOK 'e' /* the run has ended abnormally: look at this process */
#define OBSERVER_TIMEOUT                                                                                     \
    't' /* the same, and the reason is the time limit, of which the event does not tell */
#define OBSERVER_NOTHING 'n' /* nothing is to be seen */

/* How long the guest's process waits for the observer. A core of 4 GiB on a slow disk takes a minute. */
#define OBSERVER_WAIT_S 120

#endif
