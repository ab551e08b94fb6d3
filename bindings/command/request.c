#define _GNU_SOURCE
#include "request.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "ends.h"

#define MIB          (UINT64_C(1) << 20)
#define MEM_GRANULE  (2 * MIB)
#define MEM_DEFAULT  (512 * MIB)
#define MEM_MAX      (4096 * MIB)
#define NAME_MAX_    67
#define SETTINGS_FEW 16
#define DIGITS_MAX   9 /* of any number here: an int holds it */

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_alnum(char c)
{
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* The decimal number that all of [text, text + len) is. */
static bool number(const char *text, size_t len, uint32_t *value)
{
    if (len < 1 || len > DIGITS_MAX)
        return false;
    *value = 0;
    for (size_t i = 0; i < len; i++) {
        if (!is_digit(text[i]))
            return false;
        *value = *value * 10 + (uint32_t)(text[i] - '0');
    }
    return true;
}

static bool is_name(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (!is_alnum(text[i]))
            return false;
    return len >= 1 && len <= NAME_MAX_;
}

static bool take_mem(struct request *request, uint64_t asked)
{
    uint64_t rounded = asked / MEM_GRANULE * MEM_GRANULE;
    if (rounded < MEM_GRANULE)
        rounded = MEM_GRANULE;
    if (!asked || rounded > MEM_MAX)
        return false;
    request->mem_bytes = rounded;
    request->mem_adjusted = rounded != asked;
    return true;
}

/* `64`, `64M`, `1G`: digits and at most one letter. */
static bool read_mem(struct request *request, const char *text)
{
    size_t digits = strspn(text, "0123456789");
    uint32_t value;
    uint64_t unit = MIB;
    if (!number(text, digits, &value))
        return false;
    switch (text[digits]) {
    case '\0':
        return take_mem(request, value * MIB);
    case 'k':
    case 'K':
        unit = 1 << 10;
        break;
    case 'm':
    case 'M':
        break;
    case 'g':
    case 'G':
        unit = 1 << 30;
        break;
    default:
        return false;
    }
    return !text[digits + 1] && take_mem(request, value * unit);
}

/* `5`, `0.25`, `250ms`, `5s`: no exponent, no sign. */
static bool read_seconds(const char *text, double *seconds)
{
    size_t digits = strspn(text, "0123456789.");
    const char *unit = text + digits;
    bool in_ms = strcmp(unit, "ms") == 0;
    char *end;
    if (digits < 1 || digits > 20 || (*unit && !in_ms && strcmp(unit, "s") != 0))
        return false;
    *seconds = strtod(text, &end) * (in_ms ? 0.001 : 1.0);
    return end == unit && *seconds > 0 && *seconds < 1e9;
}

static bool read_lock_wait(struct request *request, const char *text)
{
    request->lock_wait_s = 0;
    return strcmp(text, "0") == 0 || read_seconds(text, &request->lock_wait_s);
}

static bool read_backend(struct request *request, const char *text)
{
    static const char *const names[] = {
        [BACKEND_AUTO] = "auto", [BACKEND_KVM] = "kvm", [BACKEND_SANDBOX] = "sandbox"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(text, names[i]) == 0) {
            request->backend = (enum backend)i;
            return true;
        }
    return false;
}

/* LAYER,LAYER,...: in place of what was required before. */
static bool read_require(struct request *request, const char *text)
{
    request->require = 0;
    for (;;) {
        size_t len = strcspn(text, ",");
        uint32_t index = 0;
        const char *name;
        while ((name = isolation_name(index)) && (strlen(name) != len || memcmp(name, text, len) != 0))
            index++;
        if (!name)
            return false;
        request->require |= 1u << index;
        if (!text[len])
            return true;
        text += len + 1;
    }
}

static bool read_mac(const char *text, uint8_t mac[6])
{
    for (int i = 0; i < 6; i++) {
        char *end;
        if (!isxdigit((unsigned char)text[0]))
            return false;
        unsigned long byte = strtoul(text, &end, 16);
        if (end > text + 2 || *end != (i < 5 ? ':' : '\0'))
            return false;
        mac[i] = (uint8_t)byte;
        text = end + 1;
    }
    return !(mac[0] & 1); /* a group's address is no interface's */
}

static bool ends_with(const char *text, const char *end)
{
    size_t len = strlen(text), end_len = strlen(end);
    return len >= end_len && strcmp(text + len - end_len, end) == 0;
}

/* The interface, path or @FD of --net or --block. `suffixes`: :raw, and then :ro or :rw,
 * mean something behind a path; else a disk is raw. */
static bool read_value(struct setting *setting, const char *value, bool suffixes)
{
    const bool has_suffix = suffixes && (ends_with(value, ":ro") || ends_with(value, ":rw"));
    size_t len = strlen(value) - (has_suffix ? 3 : 0);
    setting->read_only = has_suffix && ends_with(value, ":ro");
    setting->raw = !suffixes || (len >= 4 && memcmp(value + len - 4, ":raw", 4) == 0);
    if (suffixes && setting->raw)
        len -= 4;
    if (*value == '@') {
        uint32_t fd;
        if (!number(value + 1, len - 1, &fd))
            return false;
        setting->fd = (int)fd;
        return true;
    }
    setting->value = value[len] ? strndup(value, len) : value; /* the word stays whole, for Python */
    return setting->value && len;
}

static bool read_setting(struct request *request, enum setting_kind kind, const char *name, size_t name_len,
                         const char *value)
{
    struct setting *setting = &request->settings[request->setting_count++];
    *setting = (struct setting){.kind = kind, .name = name, .name_len = name_len, .fd = -1};
    switch (kind) {
    case SETTING_NET_MAC:
        return read_mac(value, setting->mac);
    case SETTING_SECTOR_SIZE:
        return number(value, strlen(value), &setting->sector_size) && setting->sector_size >= 512 &&
               setting->sector_size <= 32768 && !(setting->sector_size & (setting->sector_size - 1));
    case SETTING_NET: /* solo5-hvt reads an interface up to a blank, and no more than 19 letters of it */
        return read_value(setting, value, false) && !strpbrk(value, " \t\n\v\f\r") && strlen(value) <= 15;
    case SETTING_BLOCK:
        return read_value(setting, value, !request->solo5);
    }
    return false;
}

static bool option_is(const char *word, size_t len, const char *option)
{
    return len == strlen(option) && memcmp(word, option, len) == 0;
}

static bool kind_of(const char *word, size_t len, enum setting_kind *kind)
{
    static const char *const options[] = {
        [SETTING_NET] = "--net",
        [SETTING_NET_MAC] = "--net-mac",
        [SETTING_BLOCK] = "--block",
        [SETTING_SECTOR_SIZE] = "--block-sector-size",
    };
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        if (option_is(word, len, options[i])) {
            *kind = (enum setting_kind)i;
            return true;
        }
    return false;
}

/* An option of `tender run`; *next is the word behind it, which it may take. */
static bool read_run_option(struct request *request, char *word, char ***next)
{
    size_t head = strcspn(word, "="), base = strcspn(word, ":=");
    char *value = word[head] ? word + head + 1 : NULL;
    bool named = base < head;
    enum setting_kind kind = SETTING_NET;
    bool is_setting = kind_of(word, base, &kind);
    if (!value && !named) {
        if (option_is(word, base, "-q") || option_is(word, base, "--quiet")) {
            request->quiet = true;
            return true;
        }
        if (option_is(word, base, "--no-net-ring")) {
            request->no_net_ring = true;
            return true;
        }
        if (option_is(word, base, "--net-reattach")) {
            request->net_reattach = true;
            return true;
        }
        value = **next;
        if (!value || strncmp(value, "--", 2) == 0)
            return false;
        ++*next;
    }
    if (!value)
        return false;
    if (is_setting) {
        const char *name = word + base + 1;
        size_t name_len = named ? head - base - 1 : 0;
        if (named && !is_name(name, name_len))
            return false;
        size_t split = strcspn(value, "=");
        if (!named && value[split] && is_name(value, split)) { /* a path such as /a=b stays whole */
            name = value;
            name_len = split;
            value += split + 1;
        }
        return read_setting(request, kind, name, name_len, value);
    }
    if (named)
        return false;
    if (option_is(word, base, "--mem"))
        return read_mem(request, value);
    if (option_is(word, base, "--timeout"))
        return read_seconds(value, &request->timeout_s);
    if (option_is(word, base, "--lock-wait")) {
        request->lock_wait_word = *next - 1;
        return read_lock_wait(request, value);
    }
    if (option_is(word, base, "--require"))
        return read_require(request, value);
    return option_is(word, base, "--backend") && read_backend(request, value);
}

static bool same_device(const struct setting *a, const struct setting *b)
{
    return a->kind == b->kind && a->name_len == b->name_len && memcmp(a->name, b->name, a->name_len) == 0;
}

/* An option of solo5-hvt: a value behind `=`, each device named, none twice (each would be opened). */
static bool read_solo5_option(struct request *request, char *word)
{
    size_t head = strcspn(word, "="), base = strcspn(word, ":=");
    enum setting_kind kind = SETTING_NET;
    if (strcmp(word, "--no-net-ring") == 0) {
        request->no_net_ring = true;
        return true;
    }
    if (strcmp(word, "--net-reattach") == 0) {
        request->net_reattach = true;
        return true;
    }
    if (!word[head])
        return false;
    char *value = word + head + 1;
    if (option_is(word, head, "--mem")) {
        uint32_t mib;
        return number(value, strlen(value), &mib) && take_mem(request, mib * MIB);
    }
    if (base == head || !kind_of(word, base, &kind) || !is_name(word + base + 1, head - base - 1))
        return false;
    if (!read_setting(request, kind, word + base + 1, head - base - 1, value))
        return false;
    const struct setting *made = &request->settings[request->setting_count - 1];
    for (size_t i = 0; i + 1 < request->setting_count; i++)
        if (same_device(&request->settings[i], made))
            return false;
    return true;
}

bool request_read(char **words, const char *backend, const char *require, const char *lock_wait,
                  struct request *request)
{
    size_t count = 0;
    while (words[count])
        count++;
    static struct setting few[SETTINGS_FEW]; /* musl's heap takes four calls and three pages to begin with */
    request->settings = count < SETTINGS_FEW ? few : calloc(count + 1, sizeof *request->settings);
    request->mem_bytes = MEM_DEFAULT;
    if (!request->settings || (backend && *backend && !read_backend(request, backend)) ||
        (require && *require && !read_require(request, require)) ||
        (lock_wait && *lock_wait && !read_lock_wait(request, lock_wait)))
        return false;
    while (*words && **words == '-') {
        char *word = *words++;
        if (strcmp(word, "--") == 0)
            break;
        if (!(request->solo5 ? read_solo5_option(request, word) : read_run_option(request, word, &words)))
            return false;
    }
    request->image = *words;
    request->args = words + 1;
    return *words && **words;
}
