#include "device_ops.h"

#define DEVICE(type, name, word) extern const struct device_ops name##_ops;
#include "devices.def"

const char *const device_words[DEVICE_TYPES] = {
#define DEVICE(type, name, word) [type] = word,
#include "devices.def"
};

const struct device_ops *const device_kinds[DEVICE_TYPES] = {
#define DEVICE(type, name, word) [type] = &name##_ops,
#include "devices.def"
};
