/*
 * The replacement of the network ring in a build without it (-Dnet_ring=false): whatever is asked
 * for, no guest is offered a ring, and its area is unchanged. One TAP line for each check.
 */
#include <string.h>

#include "device.h"
#include "holds.h"
#include "ring.h"

static struct vm vm, untouched;
static struct hvt_net_ring area, empty;

int main(void)
{
    for (uint32_t wanted = RING_NONE; wanted <= RING_WORKER; wanted++) {
        HOLDS(ring_mode_for(HVT_GUEST_MIN_GPA, HVT_MEM_MAX, wanted) == RING_NONE);
        ring_offer(&vm, &area, wanted);
    }
    ring_worker_prepare(&vm);
    ring_end(&vm);
    ring_worker_stop(&vm);
    HOLDS(memcmp(&vm, &untouched, sizeof vm) == 0);
    HOLDS(memcmp(&area, &empty, sizeof area) == 0);
    return claims_end();
}
