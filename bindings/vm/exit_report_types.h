/* The end of a run, in words, as plain data; Python reads it through cffi (bindings/python/native.h). */
#ifndef TENDER_EXIT_REPORT_TYPES_H
#define TENDER_EXIT_REPORT_TYPES_H

#include <stdint.h>

/* <native:types> */

/* Of an end that is not the guest's own halt. Managers of unikernels (Albatross) never start again after 1
 * and 60 to 64, and do after 2. */
#define STATUS_CANNOT_START 1
#define STATUS_ENDED        1 /* starting anew would only repeat it, or it was asked for */
#define STATUS_HOST_FAILED  2 /* through nothing that the guest did: starting anew may help */

#define NO_LIMIT 0xffffffffffffffff /* ns: of a run without a time limit */

/* In whose words a way out is told: arguments of the library, or options of the command. */
enum told { TOLD_LIBRARY, TOLD_COMMAND };

struct exit_report {
    const char *reason; /* one of ExitReason's (tender/result.py) */
    int32_t status;     /* what the command line exits with */
    char message[256];  /* empty for an ordinary end */
};

/* </native:types> */

#endif
