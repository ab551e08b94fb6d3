/* The words about a network. */
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
    return !(mac[0] & 1); /* a group's address is no interface's */
}

bool net_configure(struct device_settings *settings, const char *option, const char *value, bool solo5)
{
    (void)solo5;
    if (strcmp(option, "net-mac") == 0)
        return read_mac(value, settings->mac);
    /* solo5-hvt reads an interface up to a blank, and no more than 19 letters of it */
    return strcmp(option, "net") == 0 && !strpbrk(value, " \t\n\v\f\r") && strlen(value) <= 15 &&
           words_source(settings, value, strlen(value));
}
