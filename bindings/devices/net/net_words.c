/* Reads the options for networks. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "device_words.h"

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
    return !(mac[0] & 1); /* an interface cannot have a group address */
}

bool net_configure(struct device_settings *settings, const char *option, const char *value, bool solo5)
{
    (void)solo5;
    if (strcmp(option, "net-mac") == 0)
        return read_mac(value, settings->mac);
    /* solo5-hvt reads the name of an interface up to the first blank, and at most 19 characters of it */
    return strcmp(option, "net") == 0 && !strpbrk(value, " \t\n\v\f\r") && strlen(value) <= 15 &&
           words_source(settings, value, strlen(value));
}
