#include "device_ops.h"

#define DEVICE(type, name, word) extern const struct device_run_ops name##_run_ops;
#include "devices.def"

const struct device_run_ops *const device_run_kinds[DEVICE_TYPES] = {
#define DEVICE(type, name, word) [type] = &name##_run_ops,
#include "devices.def"
};
