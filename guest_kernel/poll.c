/* Waits for network input or for time to pass. */
#include "kernel.h"

int poll_wait(uint64_t timeout_ns, uint64_t *ready_set)
{
    uint64_t set;
    int count;
    if (net_queues_wait && net_queues_wait(timeout_ns, ready_set ? ready_set : &set, &count)) {
        return count;
    }
    struct hvt_poll call = {.timeout_nsecs = timeout_ns};
    gate_poll(&call);
    if (ready_set) {
        *ready_set = call.ready_set;
    }
    return call.ret;
}
