/* The GDT and the page tables of the hvt contract. The page tables map memory one to one. */
#ifndef TENDER_PAGE_TABLES_H
#define TENDER_PAGE_TABLES_H

#include "tender_abi.h"

/*
 * Writes them for `mapped_bytes` of guest memory (a multiple of 2 MiB, at most 4 GiB) into `low`,
 * which has HVT_GUEST_MIN_GPA bytes and zeroed tables.
 */
void write_page_tables(uint8_t *low, uint64_t mapped_bytes);

#endif
