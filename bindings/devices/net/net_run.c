#include "device_ops.h"

extern const struct device_run_ops net_run_ops;
const struct device_run_ops net_run_ops = {0};
