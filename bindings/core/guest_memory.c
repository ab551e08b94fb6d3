#include "guest_memory.h"

void *guest_memory_at(const struct guest_memory *memory, gpa_t gpa, uint64_t len, enum guest_access access)
{
    static uint8_t nothing; /* where memory begins at address 0, that must not look like a refusal */
    if (gpa > memory->bytes || len > memory->bytes - gpa)
        return NULL;
    if (!len)
        return &nothing;
    if (gpa < (access == GUEST_WRITABLE ? HVT_GUEST_MIN_GPA : HVT_LOW_UNMAPPED_BYTES))
        return NULL;
    uint32_t needed = access == GUEST_WRITABLE ? SEGMENT_WRITE : SEGMENT_READ | SEGMENT_WRITE | SEGMENT_EXEC;
    for (uint32_t i = 0; i < memory->range_count; i++) {
        const struct guest_range *range = &memory->ranges[i];
        if (range->start < gpa + len && gpa < range->end && !(range->flags & needed))
            return NULL;
    }
    return memory->hva + gpa;
}
