/*
 * For a build without the network ring (-Dnet_ring=false). No guest is offered one, so nothing else
 * is called.
 */
#include "device.h"
#include "ring.h"

uint32_t ring_mode_for(gpa_t image_end, uint64_t mem_bytes, uint32_t wanted)
{
    (void)image_end;
    (void)mem_bytes;
    (void)wanted;
    return RING_NONE;
}

void ring_offer(struct vm *vm, void *shared, uint32_t mode)
{
    (void)vm;
    (void)shared;
    (void)mode;
}

void ring_end(struct vm *vm)
{
    (void)vm;
}

void ring_worker_prepare(struct vm *vm)
{
    (void)vm;
}

void ring_worker_stop(struct vm *vm)
{
    (void)vm;
}
