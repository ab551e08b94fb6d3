/* Makes a name from outside safe for a line of output. */
#include <stdio.h>
#include <string.h>

#include "device.h"

char *text_escape(char *to, size_t capacity, const char *text, bool keep_high)
{
    static const char cut[] = "...";
    size_t at = 0;
    for (; *text; text++) {
        const unsigned char byte = (unsigned char)*text;
        const bool plain = (byte >= 0x20 && byte < 0x7f) || (byte >= 0x80 && keep_high);
        if (at + (plain ? 1 : 4) + sizeof cut > capacity) {
            memcpy(to + at, cut, sizeof cut);
            return to;
        }
        if (plain)
            to[at++] = *text;
        else
            at += (size_t)snprintf(to + at, capacity - at, "\\x%02x", byte);
    }
    to[at] = '\0';
    return to;
}
