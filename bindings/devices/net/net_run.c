/* Networks need nothing of struct device_run_ops: they have no places and no mappings. */
#include "device_ops.h"

const struct device_run_ops net_run_ops = {0};
