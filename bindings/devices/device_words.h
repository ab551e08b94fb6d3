/*
 * What the words of options say of devices: text to settings, nothing opened. Each kind reads its own, in its
 * folder: NAME_configure() of abi/devices.def.
 */
#ifndef TENDER_DEVICE_WORDS_H
#define TENDER_DEVICE_WORDS_H

#include <stdbool.h>
#include <stddef.h>

#include "device_types.h"
#include "tender_abi.h"

/* By its name in the table, the type of a kind. */
enum device_type_by_name {
#define DEVICE(type, name, word) DEVICE_TYPE_##name = (type),
#include "devices.def"
};

/* What a device is without any word. */
#define DEVICE_SETTINGS_UNSAID ((struct device_settings){.fd = -1, .mtu = 1500, .sector_size = 512})

typedef bool device_configurer(struct device_settings *settings, const char *option, const char *value,
                               bool solo5);
#define DEVICE(type, name, word) device_configurer name##_configure;
#include "devices.def"

/*
 * Adds what `value` says behind `option`, which is without its dashes, to the settings of a device of that
 * type; they may point into both. `solo5`: it is read as solo5-hvt reads it. False: it is no such value, or
 * one that is not plainly right, and the settings are of no use any more.
 */
bool device_configure(uint32_t type, struct device_settings *settings, const char *option, const char *value,
                      bool solo5);

/* The decimal number, of nine digits at most, that all of [text, text + len) is. */
bool words_number(const char *text, size_t len, uint32_t *number);
/* A name, which is all of [value, value + len), or @FD. */
bool words_source(struct device_settings *settings, const char *value, size_t len);

#endif
