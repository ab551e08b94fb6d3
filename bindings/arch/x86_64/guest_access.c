/* Access by linear addresses of the guest, with a CPU's faults; guest_access.h has the rule. */
#include "guest_access.h"

#include <string.h>

#include "entered.h"

bool address_is_canonical(uint64_t address)
{
    uint64_t top = address >> 47;
    return top == 0 || top == 0x1ffff;
}

bool address_is_present(const struct guest_memory *memory, uint64_t address)
{
    return address >= HVT_LOW_UNMAPPED_BYTES && address < memory->bytes;
}

bool raise_error(struct exception *fault, enum vector vector, uint32_t error)
{
    *fault = (struct exception){.vector = (uint8_t)vector, .error = error};
    return false;
}

bool raise_page_fault(const struct guest_memory *memory, struct exception *fault, uint64_t address,
                      enum guest_access access)
{
    uint32_t error =
        (address_is_present(memory, address) ? PF_PRESENT : 0) | (access == GUEST_WRITABLE ? PF_WRITE : 0);
    *fault = (struct exception){.vector = VECTOR_PF, .error = error, .cr2 = address};
    return false;
}

static void *present_at(const struct guest_memory *memory, uint64_t address, uint32_t len,
                        enum guest_access access)
{
    return address_is_present(memory, address) ? guest_memory_at(memory, address, len, access) : NULL;
}

/*
 * Each page has rights of its own, so an access fails at its own address or at the start of its
 * second page.
 */
static void *reach(const struct guest_memory *memory, uint64_t address, uint32_t len,
                   enum guest_access access, enum access_through through, struct exception *fault)
{
    if (!address_is_canonical(address) || !address_is_canonical(address + len - 1)) {
        raise_error(fault, through == THROUGH_STACK ? VECTOR_SS : VECTOR_GP, 0);
        return NULL;
    }
    uint32_t first = HVT_PAGE_BYTES - (uint32_t)(address % HVT_PAGE_BYTES);
    if (first > len)
        first = len;
    void *whole = present_at(memory, address, len, access);
    if (!whole) {
        bool second = first < len && present_at(memory, address, first, access);
        raise_page_fault(memory, fault, second ? address + first : address, access);
    }
    return whole;
}

bool guest_read(const struct guest_memory *memory, uint64_t address, void *to, uint32_t len,
                enum access_through through, struct exception *fault)
{
    const void *from = reach(memory, address, len, GUEST_READABLE, through, fault);
    if (!from)
        return false;
    memcpy(to, from, len);
    return true;
}

bool guest_write(const struct guest_memory *memory, uint64_t address, const void *from, uint32_t len,
                 enum access_through through, struct exception *fault)
{
    void *to = reach(memory, address, len, GUEST_WRITABLE, through, fault);
    if (!to)
        return false;
    guest_put(memory, to, from, len, ENTERED_PROCESSOR);
    return true;
}

uint32_t guest_fetch(const struct guest_memory *memory, uint64_t address, uint8_t *to, uint32_t capacity)
{
    for (uint32_t len = capacity; len > 0; len--) {
        const void *from = present_at(memory, address, len, GUEST_READABLE);
        if (from) {
            memcpy(to, from, len);
            return len;
        }
    }
    return 0;
}
