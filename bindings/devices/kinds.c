#include "device_ops.h"

#define DEVICE(type, name) extern const struct device_ops name##_ops;
#include "devices.def"

const struct device_ops *const device_kinds[DEVICE_TYPES] = {
#define DEVICE(type, name) [type] = &name##_ops,
#include "devices.def"
};
