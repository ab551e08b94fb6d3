/* The kinds of devices by type, for the process that runs the guest; device_ops.h has the contract. */
#include "device_ops.h"

const struct device_run_ops *const device_run_kinds[DEVICE_TYPES] = {
#define DEVICE(type, name, word) [type] = &name##_run_ops,
#include "devices.def"
};
