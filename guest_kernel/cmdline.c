/*
 * The command line: the raw text, its division into words, and searches in the words. The tender
 * joins its arguments with single spaces and quotes nothing. So a space inside an argument looks
 * the same as a space between two arguments.
 */
#include "kernel.h"

static const char *raw_line;
static char words[HVT_CMDLINE_BYTES];
static char *word_starts[HVT_CMDLINE_BYTES / 2 + 1]; /* a word and its space take at least two bytes */

const char *guest_cmdline(void)
{
    return raw_line;
}

int cmdline_init(const char *line, char ***argv)
{
    raw_line = line;
    size_t len = strnlen(line, HVT_CMDLINE_BYTES - 1);
    memcpy(words, line, len);
    words[len] = '\0';

    int count = 0;
    bool in_word = false;
    for (size_t i = 0; i < len; i++) {
        if (words[i] == ' ') {
            words[i] = '\0';
            in_word = false;
        } else if (!in_word) {
            word_starts[count++] = &words[i];
            in_word = true;
        }
    }
    word_starts[count] = NULL;
    *argv = word_starts;
    return count;
}

const char *args_value(int argc, char **argv, const char *prefix)
{
    size_t len = strlen(prefix);
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], prefix, len) == 0) {
            return argv[i] + len;
        }
    }
    return NULL;
}

bool args_has(int argc, char **argv, const char *word)
{
    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], word) == 0) {
            return true;
        }
    }
    return false;
}

static unsigned digit_value(char c)
{
    if (c >= '0' && c <= '9') {
        return (unsigned)(c - '0');
    }
    if (c >= 'a' && c <= 'f') {
        return (unsigned)(c - 'a') + 10;
    }
    if (c >= 'A' && c <= 'F') {
        return (unsigned)(c - 'A') + 10;
    }
    return 255;
}

bool number_parse(const char *text, uint64_t *value)
{
    if (!text) {
        return false;
    }
    unsigned base = 10;
    if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X')) {
        base = 16;
        text += 2;
    }
    uint64_t sum = 0;
    if (!*text) {
        return false;
    }
    for (; *text; text++) {
        unsigned digit = digit_value(*text);
        if (digit >= base || __builtin_mul_overflow(sum, (uint64_t)base, &sum) ||
            __builtin_add_overflow(sum, (uint64_t)digit, &sum)) {
            return false;
        }
    }
    *value = sum;
    return true;
}
