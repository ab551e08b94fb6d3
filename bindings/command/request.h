/*
 * What a command line asks for, as far as the launcher serves it by itself: words to values, nothing opened.
 *
 * The grammars are those of tender/cli/options.py and solo5.py, of each the part that is plainly right. What
 * is wrong, rare or new is not decided here but left to Python, which reads the same words again and says
 * what is to be said. So a message has one place, and a word that both accept means the same to both.
 */
#ifndef TENDER_REQUEST_H
#define TENDER_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum setting_kind { SETTING_NET, SETTING_NET_MAC, SETTING_BLOCK, SETTING_SECTOR_SIZE };

/* One word about a device. */
struct setting {
    enum setting_kind kind;
    const char *name; /* name_len 0: the only device of its kind */
    size_t name_len;
    const char *value; /* of --net and --block: an interface or a path; NULL: `fd` */
    int fd;
    bool read_only;
    bool raw; /* --block: whatever format of a disk image it looks like */
    uint32_t sector_size;
    uint8_t mac[6];
};

enum backend { BACKEND_AUTO, BACKEND_KVM, BACKEND_SANDBOX };

struct request {
    const char *program; /* whom messages begin with */
    bool solo5;          /* solo5-hvt's grammar: no hints, no --quiet */
    bool quiet;
    const char *image;
    char **args; /* NULL-terminated */
    uint64_t mem_bytes;
    bool mem_adjusted;
    bool no_net_ring;
    bool net_reattach;
    enum backend backend;
    uint32_t require;      /* enum isolation_layer: those without which no guest is run */
    double timeout_s;      /* 0: none */
    double lock_wait_s;    /* how long to wait for disks that another has locked */
    char **lock_wait_word; /* the word that says so, or the value behind it; NULL: the environment's */
    struct setting *settings;
    size_t setting_count;
};

/*
 * Reads the words of `tender run`, or with `request->solo5` set of solo5-hvt, up to a NULL; `backend`,
 * `require` and `lock_wait` are the values of TENDER_BACKEND, TENDER_REQUIRE and TENDER_LOCK_WAIT, or NULL.
 * Fills `request`, whose pointers go
 * into `words`; settings are never freed. False: not for us.
 */
bool request_read(char **words, const char *backend, const char *require, const char *lock_wait,
                  struct request *request);

#endif
