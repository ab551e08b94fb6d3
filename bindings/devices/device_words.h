/*
 * Reads the values of the options for devices into settings. It opens nothing. Each kind reads its
 * own options, in its folder: NAME_configure(), where abi/devices.def has the NAME.
 */
#ifndef TENDER_DEVICE_WORDS_H
#define TENDER_DEVICE_WORDS_H

#include <stdbool.h>
#include <stddef.h>

#include "device_types.h"
#include "tender_abi.h"

/* The type of each kind, by the kind's name in the table. */
enum device_type_by_name {
#define DEVICE(type, name, word) DEVICE_TYPE_##name = (type),
#include "devices.def"
};

/* The settings of a device that no option describes. */
#define DEVICE_SETTINGS_DEFAULTS ((struct device_settings){.fd = -1, .mtu = 1500, .sector_size = 512})

typedef bool device_configurer(struct device_settings *settings, const char *option, const char *value,
                               bool solo5);
#define DEVICE(type, name, word) device_configurer name##_configure;
#include "devices.def"

/*
 * Reads the `value` of `option`, which is given without its dashes, into the settings of a device
 * of that type. The settings may then point into both texts. `solo5`: the value is read as
 * solo5-hvt reads it. Returns false if the option is not for this type or the value is not clearly
 * valid. The settings must then not be used.
 */
bool device_configure(uint32_t type, struct device_settings *settings, const char *option, const char *value,
                      bool solo5);

/* Reads all of [text, text + len) as a decimal number of at most nine digits. */
bool words_number(const char *text, size_t len, uint32_t *number);
/* Reads all of [value, value + len) as a name, or as @FD. */
bool words_source(struct device_settings *settings, const char *value, size_t len);

#endif
