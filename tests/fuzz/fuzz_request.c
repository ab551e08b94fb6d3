/*
 * Command lines under libFuzzer: the launcher reads words into a request
 * (bindings/command/request.c).
 *
 *   input: u8 flags (1: solo5-hvt's grammar, 2: TENDER_BACKEND is set, 4: TENDER_REQUIRE is set,
 *          8: TENDER_LOCK_WAIT is set), then words, each up to a 0 byte. The variables that are set take the
 *          first words.
 *
 * Each word is an allocation of its own, so a read past a word's end is found. An accepted request
 * keeps the bounds that later code relies on. The words stay unchanged, so that Python can read
 * them again, and a second reading gives the same request.
 */
#define _GNU_SOURCE /* asprintf() */
#include <stdio.h>
#include <string.h>

#include "device_words.h"
#include "exit_report.h"
#include "must.h"
#include "request.h"

#define WORDS_MAX 40u
#define MIB       (UINT64_C(1) << 20)
#define STATIC    16u /* up to this number of words, request.c needs no memory for settings */

static bool is_within(const char *pointer, char *const *words, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (pointer >= words[i] && pointer <= words[i] + strlen(words[i]))
            return true;
    return false;
}

/* Six numbers of one or two digits, and nothing else. */
static void check_mac(const char *text, const uint8_t mac[6])
{
    unsigned byte[6];
    int end = -1;
    MUST(sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%n", byte, byte + 1, byte + 2, byte + 3, byte + 4, byte + 5,
                &end) == 6);
    MUST(end >= 11 && !text[end] && strspn(text, "0123456789abcdefABCDEF:") == (size_t)end);
    for (int i = 0; i < 6; i++)
        MUST(mac[i] == byte[i]);
}

static void check_setting(const struct request *request, const struct setting *setting, char *const *words,
                          size_t count)
{
    MUST(setting->name_len <= 67 && (setting->name_len || !request->solo5));
    for (size_t i = 0; i < setting->name_len; i++)
        MUST(is_within(setting->name + i, words, count) && strchr(":=", setting->name[i]) == NULL);
    struct device_settings said = DEVICE_SETTINGS_DEFAULTS;
    MUST(is_within(setting->value, words, count));
    MUST(device_configure(setting->type, &said, setting->option, setting->value, request->solo5));
    if (strcmp(setting->option, "net") == 0)
        MUST(said.source ? strlen(said.source) >= 1 && strlen(said.source) <= 15 : said.fd >= 0);
    else if (strcmp(setting->option, "block") == 0) {
        MUST(said.source ? *said.source && said.fd == -1 : said.fd >= 0);
        MUST(!said.read_only || !request->solo5);
    } else if (strcmp(setting->option, "block-sector-size") == 0) {
        MUST(said.sector_size >= 512 && said.sector_size <= 32768);
        MUST(__builtin_popcount(said.sector_size) == 1);
    } else {
        MUST(strcmp(setting->option, "net-mac") == 0);
        if (setting->name_len)
            check_mac(setting->name + setting->name_len + 1, said.mac);
    }
    MUST(!said.source || (said.source == setting->value && said.source_len < strlen(said.source)));
}

static void check(const struct request *request, char *const *words, size_t count)
{
    size_t at = 0;
    uint32_t layers = 0;
    while (isolation_name(layers))
        layers++;
    MUST(request->example ? !request->image : request->image && *request->image);
    while (at < count && words[at] != request->image && words + at != request->args)
        at++;
    MUST(request->args == words + at + !request->example);
    MUST(request->mem_bytes >= 2 * MIB && request->mem_bytes <= 4096 * MIB &&
         request->mem_bytes % (2 * MIB) == 0);
    MUST(request->timeout_s >= 0 && request->timeout_s < 1e9);
    MUST(request->lock_wait_s >= 0 && request->lock_wait_s < 1e9);
    MUST(!request->wait_word || (request->wait_word >= words && request->wait_word < words + at));
    MUST((!request->backend || machine_by_name(request->backend->name) == request->backend) &&
         request->setting_count <= at && !(request->require >> layers));
    MUST(!request->solo5 || (request->timeout_s == 0 && !request->quiet)); /* solo5-hvt has no such options */
    for (size_t i = 0; i < request->setting_count; i++) {
        const struct setting *one = &request->settings[i];
        check_setting(request, one, words, count);
        for (size_t j = 0; request->solo5 && j < i; j++) {
            const struct setting *other = &request->settings[j];
            MUST(one->option != other->option || one->name_len != other->name_len ||
                 memcmp(one->name, other->name, one->name_len) != 0);
        }
    }
}

/* Reads the words once, and frees what the process of a single run frees only by its end. */
static bool read_once(char **words, size_t count, char *const *environment, bool solo5,
                      struct request *request)
{
    *request = (struct request){.program = "tender", .solo5 = solo5};
    const bool ours = request_read(words, environment, request);
    if (ours)
        check(request, words, count);
    if (count >= STATIC)
        free(request->settings);
    return ours;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *words[WORDS_MAX + 1] = {NULL}, *before[WORDS_MAX];
    size_t count = 0, first = 0;
    if (!size)
        return 0;
    const unsigned flags = *data++;
    size--;
    while (size && count < WORDS_MAX) {
        const size_t len = strnlen((const char *)data, size), taken = len < size ? len + 1 : len;
        words[count] = strndup((const char *)data, len);
        before[count] = strndup((const char *)data, len);
        MUST(words[count] && before[count]);
        count++;
        data += taken;
        size -= taken;
    }
    static const char *const names[] = {"TENDER_BACKEND", "TENDER_REQUIRE", "TENDER_LOCK_WAIT"};
    char *environment[4] = {NULL};
    for (unsigned i = 0, set = 0; i < 3; i++)
        if (flags & 2u << i && first < count)
            MUST(asprintf(&environment[set++], "%s=%s", names[i], words[first++]) > 0);
    struct request request, again;
    const bool ours = read_once(words + first, count - first, environment, flags & 1, &request);
    MUST(read_once(words + first, count - first, environment, flags & 1, &again) == ours);
    MUST(!ours ||
         (request.image == again.image && request.args == again.args && request.quiet == again.quiet &&
          request.mem_bytes == again.mem_bytes && request.mem_adjusted == again.mem_adjusted &&
          request.backend == again.backend && request.lock_wait_s == again.lock_wait_s &&
          request.wait_word == again.wait_word && request.require == again.require &&
          request.no_net_ring == again.no_net_ring && request.net_reattach == again.net_reattach &&
          request.setting_count == again.setting_count));
    for (int i = 0; environment[i]; i++)
        free(environment[i]);
    for (size_t i = 0; i < count; i++) {
        MUST(strcmp(words[i], before[i]) == 0);
        free(words[i]);
        free(before[i]);
    }
    return 0;
}
