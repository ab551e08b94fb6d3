#include "lifecycle.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "debug_note.h"
#include "device.h"
#include "image_memory.h"
#include "runner.h"
#include "trace.h"

const struct machine_ops *machine_expected(const struct machine_ops *asked)
{
    struct machine_error ignored;
    const struct machine_ops *const *ops = machines;
    if (asked)
        return asked;
    while (ops[1] && (*ops)->look && (*ops)->look(&ignored) != MACHINE_LIKELY)
        ops++;
    return *ops;
}

uint32_t machine_ring_mode(const struct machine_ops *ops, const struct elf_image *image, uint64_t mem_bytes,
                           uint32_t wanted)
{
    if (wanted == RING_NONE || !ops->serves_ring)
        return RING_NONE;
    return ring_mode_for(image_end(image), mem_bytes, wanted);
}

/* Keeps the reason of the first machine that is not available. */
static void keep_reason(struct machine_choice *choice, const struct machine_ops *refused,
                        const struct machine_error *error)
{
    _Static_assert(sizeof choice->why == sizeof error->text, "it fits");
    if (choice->title)
        return;
    choice->title = refused->words->title;
    memcpy(choice->why, error->text, sizeof choice->why);
}

static void write_notice(struct machine_choice *choice, const char *instead)
{
    if (choice->title)
        (void)snprintf(choice->notice, sizeof choice->notice, "no usable %s (%s)%s%s", choice->title,
                       choice->why, instead ? ": " : "", instead ? instead : "");
}

const struct machine_ops *machine_choose(struct machine_choice *choice, const struct machine_ops *asked,
                                         struct machine_error *error)
{
    if (asked)
        return choice->tried++ ? NULL : asked;
    for (;;) {
        const struct machine_ops *const next = machines[choice->tried];
        if (choice->tried) {
            const struct machine_ops *const last = machines[choice->tried - 1];
            if (!next || strncmp(error->code, last->name, strlen(last->name)) != 0)
                return NULL;
            keep_reason(choice, last, error);
        }
        choice->tried++;
        if (!next->look || next->look(error) != MACHINE_UNFIT) {
            write_notice(choice, next->words->instead);
            return next;
        }
    }
}

int machine_open(struct machine *machine, const struct machine_ops *ops, const struct machine_plan *plan,
                 struct machine_error *error)
{
    struct machine_plan served = *plan;
    if (!ops->serves_ring)
        devices_offer(machine->vm, NULL, RING_NONE);
    if (!devices_want_area(machine->vm))
        served.ring_mode = RING_NONE;
    served.ring_mode = machine_ring_mode(ops, plan->image, plan->mem_bytes, served.ring_mode);
    if (ops->open(machine, &served, error) < 0) {
        *machine = (struct machine){.vm = machine->vm};
        return -1;
    }
    if (plan->flight_recorder)
        trace_keep_on(machine->vm->shared);
    machine->ops = ops;
    runner_of(machine->vm)->image = plan->path;
    runner_of(machine->vm)->machine = machine;
    return 0;
}

DEBUG_NOTE(debug_facts_of_machine)
{
    DEBUG_OFFSET("machine_ops", struct machine, ops);
    DEBUG_OFFSET("machine_name", struct machine_ops, name);
}
