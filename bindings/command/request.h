/*
 * The request of a command line, as far as the launcher serves it by itself: it turns arguments into
 * values and opens nothing.
 *
 * The options are the rows of tender/cli/option_table.py that are marked as native. The build writes them to
 * options.h, with a field of `struct request` for each. The grammars are those of tender/cli/options.py and
 * solo5.py, limited to what is clearly right. Whatever is wrong, rare or new is not decided here but left to
 * Python, which reads the same arguments again and prints the message. So a message has one place, and an
 * argument that both accept has the same meaning for both.
 */
#ifndef TENDER_REQUEST_H
#define TENDER_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "machine.h"
#include "options.h"

/* How the value of an option is read. */
enum option_kind {
    OPTION_DEVICE, /* for a device: read by its kind (device_words.h) */
    OPTION_FLAG,
    OPTION_MEMORY,
    OPTION_SECONDS,
    OPTION_WAIT,
    OPTION_BACKEND,
    OPTION_LAYERS,
    OPTION_OUTPUT,
    OPTION_REPORT,
    OPTION_EXAMPLE,
    OPTION_DIRECTORY,
    OPTION_COUNT,
};

/* One argument for a device. */
struct setting {
    uint32_t type;      /* the device's kind */
    const char *option; /* without its dashes */
    const char *name;   /* name_len 0: the only device of its kind */
    size_t name_len;
    const char *value;
};

struct request {
    const char *program; /* the name that messages begin with */
    bool solo5;          /* solo5-hvt's grammar: no hints, no --quiet */
    const char *image;   /* NULL: that of `example`, a guest of the package */
    char **args;         /* NULL-terminated */
    /*
     * The options: a flag is a bool, memory is NAME_bytes, a time is NAME_s (0: none). `require` has the
     * layers of enum isolation_layer without which the guest is not started. `backend` is a row of
     * machines.c; NULL: the first one that is available. `console`, `json` and `core` are the values as
     * written; NULL: not given (outputs.c, observer.c). A count is 0 if it is not given.
     */
    OPTION_FIELDS
    bool mem_adjusted; /* mem_bytes was rounded */
    char **wait_word;  /* the argument of --lock-wait, or the value after it; NULL: from the environment */
    struct setting *settings;
    size_t setting_count;
};

/*
 * Reads the arguments of `tender run`, or with `request->solo5` set those of solo5-hvt, up to a NULL, and
 * `environment`, whose variables replace options that are not given. Fills `request`, whose pointers
 * point into `words`; settings are never freed. False: Python must serve it.
 */
#define FD_PREFIX "fd:"

bool request_read(char **words, char *const *environment, struct request *request);

#endif
