/* Writes the GDT and the page tables; page_tables.h has the contract. */
#include "page_tables.h"

#include <assert.h>
#include <string.h>

/* Page table bits, Intel SDM volume 3, 4.5. The guest's tables never set "user" or "no execute". */
#define PTE_PRESENT 0x1ULL
#define PTE_WRITE   0x2ULL
#define PTE_LARGE   0x80ULL

#define PAGE_DIRECTORIES 4 /* one for each GiB up to HVT_MEM_MAX */

_Static_assert(HVT_PT_GPA == HVT_PD_GPA + PAGE_DIRECTORIES * HVT_PAGE_BYTES, "the PT follows the PDs");

static void table_set(uint8_t *low, gpa_t table, uint64_t index, uint64_t value)
{
    memcpy(low + table + index * sizeof value, &value, sizeof value);
}

void write_page_tables(uint8_t *low, uint64_t mapped_bytes)
{
    assert(mapped_bytes >= HVT_MEM_GRANULE && mapped_bytes <= HVT_MEM_MAX &&
           mapped_bytes % HVT_MEM_GRANULE == 0);

    table_set(low, HVT_GDT_GPA, HVT_SELECTOR_CS / 8, HVT_GDT_CODE);
    table_set(low, HVT_GDT_GPA, HVT_SELECTOR_DS / 8, HVT_GDT_DATA);

    table_set(low, HVT_PML4_GPA, 0, HVT_PDPT_GPA | PTE_PRESENT | PTE_WRITE);
    for (uint64_t i = 0; i < PAGE_DIRECTORIES; i++)
        table_set(low, HVT_PDPT_GPA, i, (HVT_PD_GPA + i * HVT_PAGE_BYTES) | PTE_PRESENT | PTE_WRITE);

    /*
     * The four PDs follow each other, so they are one array of 2 MiB entries. Entries of unmapped
     * memory are not written, so that a page of zeros is never touched.
     */
    table_set(low, HVT_PD_GPA, 0, HVT_PT_GPA | PTE_PRESENT | PTE_WRITE);
    for (gpa_t gpa = HVT_MEM_GRANULE; gpa < mapped_bytes; gpa += HVT_MEM_GRANULE)
        table_set(low, HVT_PD_GPA, gpa / HVT_MEM_GRANULE, gpa | PTE_LARGE | PTE_WRITE | PTE_PRESENT);

    for (gpa_t gpa = HVT_LOW_UNMAPPED_BYTES; gpa < HVT_MEM_GRANULE; gpa += HVT_PAGE_BYTES)
        table_set(low, HVT_PT_GPA, gpa / HVT_PAGE_BYTES,
                  gpa | PTE_PRESENT | (gpa < HVT_GUEST_MIN_GPA ? 0 : PTE_WRITE));
}
