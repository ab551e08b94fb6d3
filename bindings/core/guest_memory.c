/* Checks and converts guest-physical addresses; guest_memory.h has the contract. */
#include "entered.h"

void guest_memory_ranges_set(struct guest_memory *memory)
{
    uint32_t i = memory->range_count;
    while (i > 0 && memory->ranges[i - 1].flags & SEGMENT_WRITE)
        i--;
    gpa_t start = i > 0 ? memory->ranges[i - 1].end : 0;
    if (start < HVT_GUEST_MIN_GPA)
        start = HVT_GUEST_MIN_GPA;
    memory->open_start = start;
    memory->open_bytes = start < memory->bytes ? memory->bytes - start : 0;
}

void *guest_memory_in_ranges(const struct guest_memory *memory, gpa_t gpa, uint64_t len,
                             enum guest_access access)
{
    static uint8_t nothing; /* if memory begins at host address 0, its address would look like a refusal */
    if (gpa > memory->bytes || len > memory->bytes - gpa)
        return NULL;
    if (!len)
        return &nothing;
    if (gpa < (access == GUEST_WRITABLE ? HVT_GUEST_MIN_GPA : HVT_LOW_UNMAPPED_BYTES))
        return NULL;
    uint32_t needed = access == GUEST_WRITABLE ? SEGMENT_WRITE : SEGMENT_READ | SEGMENT_WRITE | SEGMENT_EXEC;
    /* Search from the end: guests mostly name their last segment, or the heap and stack after it. */
    for (uint32_t i = memory->range_count; i > 0 && gpa < memory->ranges[i - 1].end; i--) {
        const struct guest_range *range = &memory->ranges[i - 1];
        if (range->start < gpa + len && !(range->flags & needed))
            return NULL;
    }
    return memory->hva + gpa;
}

__attribute__((cold)) void entered_report(const struct guest_memory *memory, const void *at, uint64_t len,
                                          enum entered_source source)
{
    if (len)
        memory->listener->entered(memory->listener, (uint64_t)at - (uint64_t)memory->hva, len, source);
}
