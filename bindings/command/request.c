#define _GNU_SOURCE
#include "request.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "device_words.h"
#include "exit_report.h"

#define MIB          (UINT64_C(1) << 20)
#define MEM_GRANULE  (2 * MIB)
#define MEM_DEFAULT  (512 * MIB)
#define MEM_MAX      (4096 * MIB)
#define NAME_MAX_    67
#define SETTINGS_FEW 16

static bool is_name(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (!isalnum((unsigned char)text[i])) /* in the C locale: this program sets no other */
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
    if (!words_number(text, digits, &value))
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

static bool read_wait(const char *text, double *seconds)
{
    *seconds = 0;
    return strcmp(text, "0") == 0 || read_seconds(text, seconds);
}

/* NULL: the first machine that is available. */
static bool read_backend(const char *text, const struct machine_ops **backend)
{
    *backend = machine_by_name(text);
    return *backend || strcmp(text, "auto") == 0;
}

/* LAYER,LAYER,...: replaces what was required before. */
static bool read_layers(const char *text, uint32_t *layers)
{
    *layers = 0;
    for (;;) {
        size_t len = strcspn(text, ",");
        uint32_t index = 0;
        const char *name;
        while ((name = isolation_name(index)) && (strlen(name) != len || memcmp(name, text, len) != 0))
            index++;
        if (!name)
            return false;
        *layers |= 1u << index;
        if (!text[len])
            return true;
        text += len + 1;
    }
}

/* `-`, `fd:N`, or a file's name, which is checked when the file is opened. */
static bool read_output(const char *text, const char **output)
{
    const size_t prefix = strlen(FD_PREFIX);
    uint32_t fd;
    *output = text;
    return *text &&
           (strncmp(text, FD_PREFIX, prefix) != 0 || words_number(text + prefix, strlen(text + prefix), &fd));
}

static bool read_example(const char *text, const char **example)
{
    static const char *const names[] = {EXAMPLE_NAMES};
    *example = text;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(names[i], text) == 0)
            return true;
    return false;
}

struct option {
    bool solo5; /* solo5-hvt has it too */
    uint8_t kind;
    uint16_t field; /* offset in struct request; for a device its type */
    char name[OPTION_NAME_BYTES];
    char variable[OPTION_VARIABLE_BYTES];
};
#define ROW(name, solo5, kind, field, variable) {solo5, kind, field, name, variable},
static const struct option options[] = {OPTION_ROWS(ROW)};

/* Returns the option that [word, word + len) names, or NULL. A compiler compares constant lengths inline. */
static const struct option *option_named(const char *word, size_t len, bool solo5)
{
    const struct option *option = options;
#define SKIP_IF_OTHER(name, ...)                                                                             \
    if (len == sizeof name - 1 && memcmp(word, name, sizeof name - 1) == 0)                                  \
        goto found;                                                                                          \
    option++;
    OPTION_ROWS(SKIP_IF_OTHER)
    return NULL;
found:
    return option->solo5 || !solo5 ? option : NULL;
}

/* Checks whether the value can be read. The settings are combined later, when the image's devices are
 * known. */
static bool read_setting(struct request *request, const struct option *option, const char *name,
                         size_t name_len, const char *value)
{
    struct setting *setting = &request->settings[request->setting_count++];
    struct device_settings read = DEVICE_SETTINGS_DEFAULTS;
    *setting = (struct setting){option->field, option->name + 2, name, name_len, value};
    return device_configure(setting->type, &read, setting->option, value, request->solo5);
}

/* Reads the value of an option that is not for a device. */
static bool read_value(struct request *request, const struct option *option, const char *value)
{
    void *field = (char *)request + option->field;
    uint32_t mib;
    switch (option->kind) {
    case OPTION_MEMORY: /* solo5-hvt has no units */
        return request->solo5 ? words_number(value, strlen(value), &mib) && take_mem(request, mib * MIB)
                              : read_mem(request, value);
    case OPTION_SECONDS:
        return read_seconds(value, field);
    case OPTION_WAIT:
        return read_wait(value, field);
    case OPTION_BACKEND:
        return read_backend(value, field);
    case OPTION_LAYERS:
        return read_layers(value, field);
    case OPTION_OUTPUT:
    case OPTION_REPORT:
        return read_output(value, field);
    case OPTION_EXAMPLE:
        return read_example(value, field);
    case OPTION_DIRECTORY:
        *(const char **)field = value;
        return *value;
    case OPTION_COUNT:
        return words_number(value, strlen(value), field) && *(uint32_t *)field;
    default:
        return false;
    }
}

static void set_flag(struct request *request, const struct option *option)
{
    *(bool *)((char *)request + option->field) = true;
}

/* Reads an option of `tender run`; *next is the argument after it, which it may take. */
static bool read_run_option(struct request *request, char *word, char ***next)
{
    size_t head = strcspn(word, "="), base = strcspn(word, ":=");
    char *value = word[head] ? word + head + 1 : NULL;
    bool named = base < head;
    const struct option *option = option_named(word, base, false);
    if (!option)
        return false;
    if (option->kind == OPTION_FLAG) {
        set_flag(request, option);
        return !value && !named;
    }
    if (option->kind == OPTION_REPORT) { /* its value is never the next argument */
        static char to_stderr[] = FD_PREFIX "2";
        return !named && read_value(request, option, value ? value : to_stderr);
    }
    if (!value && !named) {
        value = **next;
        if (!value || strncmp(value, "--", 2) == 0)
            return false;
        ++*next;
    }
    if (!value)
        return false;
    if (option->kind == OPTION_DEVICE) {
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
        return read_setting(request, option, name, name_len, value);
    }
    if (option->kind == OPTION_WAIT)
        request->wait_word = *next - 1;
    return !named && read_value(request, option, value);
}

static bool same_device(const struct setting *a, const struct setting *b)
{
    return a->option == b->option && a->name_len == b->name_len && memcmp(a->name, b->name, a->name_len) == 0;
}

/* Reads an option of solo5-hvt: the value follows `=`, each device is named, and no device twice (each
 * would be opened). */
static bool read_solo5_option(struct request *request, char *word)
{
    size_t head = strcspn(word, "="), base = strcspn(word, ":=");
    const struct option *option = option_named(word, base, true);
    char *value = word + head + 1;
    if (!option)
        return false;
    if (option->kind == OPTION_FLAG) {
        set_flag(request, option);
        return !word[base];
    }
    if (!word[head])
        return false;
    if (option->kind != OPTION_DEVICE)
        return base == head && read_value(request, option, value);
    if (base == head || !is_name(word + base + 1, head - base - 1) ||
        !read_setting(request, option, word + base + 1, head - base - 1, value))
        return false;
    const struct setting *made = &request->settings[request->setting_count - 1];
    for (size_t i = 0; i + 1 < request->setting_count; i++)
        if (same_device(&request->settings[i], made))
            return false;
    return true;
}

/* Reads the environment by the first rows of the table, in one pass: getenv() would make one pass for
 * each. */
static bool read_variables(struct request *request, char *const *environment)
{
    bool seen[OPTIONS_WITH_VARIABLE] = {false}; /* of two with one name the first counts, as for getenv() */
    for (; *environment; environment++) {
        const char *word = *environment;
        if (word[0] != 'T' || word[1] != 'E') /* skips most variables */
            continue;
        size_t len = strcspn(word, "=");
        for (size_t i = 0; word[len] && i < OPTIONS_WITH_VARIABLE; i++) {
            if (seen[i] || strlen(options[i].variable) != len || memcmp(word, options[i].variable, len) != 0)
                continue;
            seen[i] = true;
            if (word[len + 1] && !read_value(request, &options[i], word + len + 1))
                return false;
        }
    }
    return true;
}

bool request_read(char **words, char *const *environment, struct request *request)
{
    size_t count = 0;
    while (words[count])
        count++;
    static struct setting few[SETTINGS_FEW]; /* musl's first malloc() costs four calls and three pages */
    request->settings = count < SETTINGS_FEW ? few : calloc(count + 1, sizeof *request->settings);
    request->mem_bytes = MEM_DEFAULT;
    if (!request->settings || !read_variables(request, environment))
        return false;
    while (*words && **words == '-') {
        char *word = *words++;
        if (strcmp(word, "--") == 0)
            break;
        if (!(request->solo5 ? read_solo5_option(request, word) : read_run_option(request, word, &words)))
            return false;
    }
    request->image = request->example ? NULL : *words;
    request->args = words + !request->example;
    return request->example || (*words && **words);
}
