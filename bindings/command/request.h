/*
 * What a command line asks for, as far as the launcher serves it by itself: words to values, nothing opened.
 *
 * The options are those rows of tender/cli/option_table.py that are marked as native: options.h, which the
 * build writes, has them, and a field of `struct request` for each. The grammars are those of
 * tender/cli/options.py and solo5.py, of each the part that is plainly right. What is wrong, rare or new is
 * not decided here but left to Python, which reads the same words again and says what is to be said. So a
 * message has one place, and a word that both accept means the same to both.
 */
#ifndef TENDER_REQUEST_H
#define TENDER_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "machine.h"
#include "options.h"

/* How an option's value is read. */
enum option_kind {
    OPTION_DEVICE, /* about a device: by its kind (device_words.h) */
    OPTION_FLAG,
    OPTION_MEMORY,
    OPTION_SECONDS,
    OPTION_WAIT,
    OPTION_BACKEND,
    OPTION_LAYERS,
    OPTION_OUTPUT,
    OPTION_REPORT,
    OPTION_EXAMPLE,
};

/* One word about a device. */
struct setting {
    uint32_t type;      /* of the device's kind */
    const char *option; /* without its dashes */
    const char *name;   /* name_len 0: the only device of its kind */
    size_t name_len;
    const char *value;
};

struct request {
    const char *program; /* whom messages begin with */
    bool solo5;          /* solo5-hvt's grammar: no hints, no --quiet */
    const char *image;   /* NULL: that of `example`, a guest of the package */
    char **args;         /* NULL-terminated */
    /*
     * Of the options: a flag is a bool, memory NAME_bytes, a time NAME_s (0: none); `require` is the layers
     * of enum isolation_layer without which no guest is run, `backend` a row of machines.c, NULL: the first
     * that can be had; `console` and `json` the value as written, NULL: not given (outputs.c).
     */
    OPTION_FIELDS
    bool mem_adjusted; /* rounded */
    char **wait_word;  /* the word of --lock-wait, or the value behind it; NULL: the environment's */
    struct setting *settings;
    size_t setting_count;
};

/*
 * Reads the words of `tender run`, or with `request->solo5` set of solo5-hvt, up to a NULL, and
 * `environment`, whose words stand in for options. Fills `request`, whose pointers go into `words`; settings
 * are never freed. False: not for us.
 */
#define FD_PREFIX "fd:"

bool request_read(char **words, char *const *environment, struct request *request);

#endif
