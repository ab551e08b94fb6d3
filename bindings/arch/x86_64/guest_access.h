/*
 * Memory as the guest's CPU reaches it: by a linear address, with the exception that hardware raises if it
 * cannot be done. The contract's page tables map the guest's memory one to one and never change.
 *
 * The rule: all or nothing. A refused access moves no byte and fills `fault`.
 */
#ifndef TENDER_SANDBOX_GUEST_ACCESS_H
#define TENDER_SANDBOX_GUEST_ACCESS_H

#include "cpu.h"
#include "guest_memory.h"

#define PF_PRESENT 0x1u
#define PF_WRITE   0x2u

/* Which exception a non-canonical address is: #GP, or #SS if it was reached through the stack segment. */
enum access_through { THROUGH_DATA, THROUGH_STACK };

/* Four-level paging: bits 63 to 47 are equal. */
bool address_is_canonical(uint64_t address);

/* The guest's page tables have a page there: above the low 64 KiB and below the end. */
bool address_is_present(const struct guest_memory *memory, uint64_t address);

/* Up to a page at `address`, which may cross into the next page. False: `fault` says why. */
bool guest_read(const struct guest_memory *memory, uint64_t address, void *to, uint32_t len,
                enum access_through through, struct exception *fault);
bool guest_write(const struct guest_memory *memory, uint64_t address, const void *from, uint32_t len,
                 enum access_through through, struct exception *fault);

/* Copies what can be fetched of `capacity` bytes at `address`, and returns how many those are. */
uint32_t guest_fetch(const struct guest_memory *memory, uint64_t address, uint8_t *to, uint32_t capacity);

/* Fills `fault`; both return false, so that a caller can pass it on. */
bool raise_error(struct exception *fault, enum vector vector, uint32_t error);
bool raise_page_fault(const struct guest_memory *memory, struct exception *fault, uint64_t address,
                      enum guest_access access);

#endif
