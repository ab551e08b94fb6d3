#include "device_ops.h"

const struct device_run_ops net_run_ops = {0};
