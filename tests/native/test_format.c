/*
 * Compares the program's own printf() with the C library's: the same text, the same length, and no
 * byte written past the capacity. This holds for each format that a text of the program uses, in
 * buffers from empty to large. One TAP line for each check.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "exit_report.h"
#include "holds.h"
#include "says.h"

/* Under other names, because the test itself prints with the C library's functions. */
#define vsnprintf our_vsnprintf
#define snprintf  our_snprintf
#define strlen    our_strlen
#define strcmp    our_strcmp
int our_vsnprintf(char *to, size_t capacity, const char *format, va_list arguments);
int our_snprintf(char *to, size_t capacity, const char *format, ...);
size_t our_strlen(const char *text);
int our_strcmp(const char *a, const char *b);
#include "format.c"
#undef vsnprintf
#undef snprintf
#undef strlen
#undef strcmp

#define BUFFER_BYTES 300

static void compare(const char *format, ...)
{
    for (size_t capacity = 0; capacity <= BUFFER_BYTES;
         capacity = capacity < 40 ? capacity + 1 : capacity + 130) {
        char ours[BUFFER_BYTES + 8], theirs[BUFFER_BYTES + 8];
        va_list one, other;
        memset(ours, '#', sizeof ours);
        memset(theirs, '#', sizeof theirs);
        va_start(one, format);
        va_start(other, format);
        const int our_length = our_vsnprintf(ours, capacity, format, one);
        const int their_length = vsnprintf(theirs, capacity, format, other);
        va_end(one);
        va_end(other);
        if (our_length != their_length || memcmp(ours, theirs, sizeof ours) != 0)
            printf("# %s, capacity %zu: %.*s\n", format, capacity, BUFFER_BYTES, ours);
        HOLDS(our_length == their_length && memcmp(ours, theirs, sizeof ours) == 0);
    }
}

int main(void)
{
    static const uint64_t numbers[] = {0,          1,          9,          10,         255,
                                       0x7fffffff, 0x80000000, UINT32_MAX, UINT64_MAX, 0x8000000000000000};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        compare("%d|%u|%x|%02x", (int)numbers[i], (unsigned)numbers[i], (unsigned)numbers[i],
                (unsigned)numbers[i]);
        compare("0x%" PRIx64 ", %" PRIu64 ", %lu", numbers[i], numbers[i], (unsigned long)numbers[i]);
        compare("%8x|%08x|%1d", (unsigned)numbers[i], (unsigned)numbers[i], (int)(uint8_t)numbers[i]);
    }
    compare("%lu.%06lu|\\u%04x", (unsigned long)17, (unsigned long)42, 0xe9u);
    compare("%s", "");
    compare("%s: %s%s\n", "tender", "hint: ", "a line");
    compare("\\x%02x", 0x1b);
    compare("%%");
    compare("");
    compare(says_signal, 15);
    compare(says_layers_missing, "kvm, landlock");
    compare(says_fault_place, (uint64_t)0x100002, "0f 0b", (uint64_t)0x100002);
    HOLDS(our_strlen("") == 0 && our_strlen("abc") == 3);
    HOLDS(our_strcmp("a", "a") == 0 && our_strcmp("a", "b") < 0 && our_strcmp("b", "a") > 0);
    HOLDS(our_strcmp("", "a") < 0 && our_strcmp("\xff", "a") > 0 && our_strcmp("ab", "a") > 0);
    return claims_end();
}
