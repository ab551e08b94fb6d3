/* The GDT and the page tables that a guest of the hvt contract finds: memory is mapped at its own address. */
#ifndef TENDER_PAGE_TABLES_H
#define TENDER_PAGE_TABLES_H

#include "tender_abi.h"

/* Writes them for `mapped_bytes` of guest memory (a multiple of 2 MiB, at most 4 GiB) into `low`,
 * HVT_GUEST_MIN_GPA bytes whose tables are zero. */
void write_page_tables(uint8_t *low, uint64_t mapped_bytes);

#endif
