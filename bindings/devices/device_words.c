/* Reads the values of options for devices; device_words.h has the contract. */
#include "device_words.h"

#define DIGITS_MAX 9 /* for every number here, so that an int can hold it */

bool device_configure(uint32_t type, struct device_settings *settings, const char *option, const char *value,
                      bool solo5)
{
    static device_configurer *const kinds[] = {
#define DEVICE(type, name, word) [type] = name##_configure,
#include "devices.def"
    };
    return type < sizeof kinds / sizeof *kinds && kinds[type] && kinds[type](settings, option, value, solo5);
}

bool words_number(const char *text, size_t len, uint32_t *number)
{
    if (len < 1 || len > DIGITS_MAX)
        return false;
    *number = 0;
    for (size_t i = 0; i < len; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        *number = *number * 10 + (uint32_t)(text[i] - '0');
    }
    return true;
}

bool words_source(struct device_settings *settings, const char *value, size_t len)
{
    uint32_t fd;
    settings->source = NULL;
    settings->fd = -1;
    if (*value == '@') {
        if (!words_number(value + 1, len - 1, &fd))
            return false;
        settings->fd = (int)fd;
        return true;
    }
    settings->source = value;
    settings->source_len = value[len] ? (uint32_t)len : 0;
    return len;
}
