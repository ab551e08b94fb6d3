/* Reads the options for disks. */
#include <string.h>

#include "device_words.h"

static bool read_sector_size(const char *value, uint32_t *bytes)
{
    return words_number(value, strlen(value), bytes) && *bytes >= 512 && *bytes <= 32768 &&
           !(*bytes & (*bytes - 1));
}

static bool ends_with(const char *text, size_t len, const char *end)
{
    size_t end_len = strlen(end);
    return len >= end_len && memcmp(text + len - end_len, end, end_len) == 0;
}

bool block_configure(struct device_settings *settings, const char *option, const char *value, bool solo5)
{
    size_t len = strlen(value);
    if (strcmp(option, "block-sector-size") == 0)
        return read_sector_size(value, &settings->sector_size);
    if (strcmp(option, "block") != 0)
        return false;
    /*
     * A path may end with :raw, :ro, :rw, :raw:ro or :raw:rw. For solo5-hvt every disk is raw and
     * writable.
     */
    settings->read_only = !solo5 && ends_with(value, len, ":ro");
    if (!solo5 && (settings->read_only || ends_with(value, len, ":rw")))
        len -= 3;
    settings->raw = solo5 || ends_with(value, len, ":raw");
    if (!solo5 && settings->raw)
        len -= 4;
    return words_source(settings, value, len);
}
