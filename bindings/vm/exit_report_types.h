/* The end of a run, in words, as plain data; Python reads it through cffi (bindings/python/native.h). */
#ifndef TENDER_EXIT_REPORT_TYPES_H
#define TENDER_EXIT_REPORT_TYPES_H

#include <stdint.h>

/* <native:types> */

/* Statuses of a run that the guest did not end itself by halting. Managers of unikernels (Albatross) never
 * restart a guest after 1 and 60 to 64; after 2 they do. */
#define STATUS_CANNOT_START 1
#define STATUS_ENDED        1 /* a restart would only repeat it, or the end was requested */
#define STATUS_HOST_FAILED  2 /* not caused by the guest: a restart may help */

#define NO_LIMIT 0xffffffffffffffff /* ns: a run without a time limit */

/* For whom a way out is worded: with arguments of the library, or with options of the command. */
enum told { TOLD_LIBRARY, TOLD_COMMAND };

struct exit_report {
    const char *reason; /* a value of ExitReason (tender/result.py) */
    int32_t status;     /* what the command line exits with */
    char message[256];  /* empty for an ordinary end */
};

/* </native:types> */

#endif
