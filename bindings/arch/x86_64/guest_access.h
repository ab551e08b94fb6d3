/*
 * Access to memory as the guest's CPU does it: by a linear address, and with the exception that
 * hardware raises if the access fails. The contract's page tables map the guest's memory one to
 * one, and never change.
 *
 * The rule: all or nothing. A refused access transfers no byte and fills `fault`.
 */
#ifndef TENDER_SANDBOX_GUEST_ACCESS_H
#define TENDER_SANDBOX_GUEST_ACCESS_H

#include "cpu.h"
#include "guest_memory.h"

#define PF_PRESENT 0x1u
#define PF_WRITE   0x2u

/* A non-canonical address raises #GP, or #SS if the access is through the stack segment. */
enum access_through { THROUGH_DATA, THROUGH_STACK };

/* With four-level paging, bits 63 to 47 of a canonical address are equal. */
bool address_is_canonical(uint64_t address);

/* Whether the guest's page tables have a page there: above the low 64 KiB and below the end of memory. */
bool address_is_present(const struct guest_memory *memory, uint64_t address);

/*
 * Transfer up to a page's bytes at `address`; they may cross into the next page. False: `fault` is
 * filled.
 */
bool guest_read(const struct guest_memory *memory, uint64_t address, void *to, uint32_t len,
                enum access_through through, struct exception *fault);
bool guest_write(const struct guest_memory *memory, uint64_t address, const void *from, uint32_t len,
                 enum access_through through, struct exception *fault);

/* Copies as many of the `capacity` bytes at `address` as can be fetched. Returns their number. */
uint32_t guest_fetch(const struct guest_memory *memory, uint64_t address, uint8_t *to, uint32_t capacity);

/* Both fill `fault` and return false, so that a caller can return the result. */
bool raise_error(struct exception *fault, enum vector vector, uint32_t error);
bool raise_page_fault(const struct guest_memory *memory, struct exception *fault, uint64_t address,
                      enum guest_access access);

#endif
