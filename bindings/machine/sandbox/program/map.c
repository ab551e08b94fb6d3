/*
 * The guest's memory, at the guest's addresses, with the rights that its segments request.
 *
 *   0x10000   boot info, manifest, command line: private pages of the VM's memfd, read-only
 *   0x14000   zeroes, read-only
 *   0x80000   the trampolines of patched call sites, from the template, executable
 *   0xff000   the gate page: this process's own, because its jumps are absolute; 0xffe00 the extension block
 *   0x100000  segments from the template, then zeroes up to the end of memory
 *
 * The rights are enforced by the kernel: memory that is not marked as code cannot be executed. Nothing is
 * mapped below 64 KiB.
 */
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "entered.h"
#include "program.h"
#include "start_state.h"
#include "syscalls.h"

static void map(gpa_t start, gpa_t end, int protection, int flags, int fd, uint64_t offset)
{
    int64_t answer = system_call(start, end - start, (uint64_t)protection,
                                 (uint64_t)(flags | MAP_FIXED_NOREPLACE | MAP_PRIVATE | MAP_NORESERVE),
                                 (uint64_t)fd, offset, SYS_mmap);
    step_check(STEP_GUEST_MEMORY, answer);
    if ((gpa_t)answer != start)
        end_failed(STEP_GUEST_MEMORY, -17); /* EEXIST: a kernel that does not know MAP_FIXED_NOREPLACE */
}

static void protect(gpa_t start, gpa_t end, int protection)
{
    step_check(STEP_GUEST_MEMORY,
               system_call(start, end - start, (uint64_t)protection, 0, 0, 0, SYS_mprotect));
}

static int protection_of(uint32_t flags)
{
    return guest_protection(flags) | (flags & SEGMENT_EXEC ? PROT_EXEC : 0);
}

/* ba imm32: mov $port,%edx; 89 f8: mov %edi,%eax; ff 24 25 disp32: jmp *disp32 */
static void fill_gate_slot(uint8_t *slot, uint32_t number)
{
    static const uint8_t code[TENDER_GATE_SLOT_BYTES] = {0x89, 0xf8, 0xba, 0, 0, 0, 0,    0xff,
                                                         0x24, 0x25, 0,    0, 0, 0, 0xcc, 0xcc};
    const uint32_t port = HVT_PORT_BASE + number, pointer = TENDER_GATE_BACKEND_GPA + 8;
    memcpy(slot, code, sizeof code);
    memcpy(slot + 3, &port, sizeof port);
    memcpy(slot + 10, &pointer, sizeof pointer);
}

static void fill_gate_page(uint32_t extensions)
{
    uint8_t *page = (uint8_t *)(uintptr_t)TENDER_GATE_GPA;
    const uint64_t entries[2] = {(uint64_t)entry_patched, (uint64_t)entry_gate};
#define HYPERCALL(number, name, structure, access, feature, device)                                          \
    if ((extensions & (TENDER_FEATURE_GATE | (feature))) == (TENDER_FEATURE_GATE | (feature)))               \
        fill_gate_slot(page + (number) * TENDER_GATE_SLOT_BYTES, number);
#include "hypercalls.def"
    memcpy((uint8_t *)(uintptr_t)TENDER_GATE_BACKEND_GPA, entries, sizeof entries);
}

static void small_pages(gpa_t from, gpa_t end)
{
    if (end > from)
        (void)system_call(from, end - from, MADV_NOHUGEPAGE, 0, 0, 0, SYS_madvise);
}

void map_guest(const struct sandbox_config *config)
{
    const int writable = PROT_READ | PROT_WRITE;
    const gpa_t boot_end = HVT_BOOT_INFO_GPA + START_STATE_BOOT_BYTES;
    map(HVT_BOOT_INFO_GPA, boot_end, PROT_READ, 0, SANDBOX_FD_VM, SANDBOX_BOOT_OFFSET);
    map(boot_end, config->template_bytes, writable, 0, SANDBOX_FD_TEMPLATE, boot_end);
    if (config->mem_bytes > config->template_bytes)
        map(config->template_bytes, config->mem_bytes, writable, MAP_ANONYMOUS, -1, 0);
    fill_gate_page(config->extensions);
    /* hva 0: a gpa is an address here. The process that writes the boot info reports it to entered(). */
    entered(&the_vm.memory, (void *)(uintptr_t)boot_end, config->template_bytes - boot_end,
            ENTERED_START_STATE);
    protect(boot_end, TENDER_TRAMPOLINES_GPA, PROT_READ);
    protect(TENDER_TRAMPOLINES_GPA, HVT_GUEST_MIN_GPA, PROT_READ | PROT_EXEC);
    for (uint32_t i = 0; i < config->range_count; i++) {
        int protection = protection_of(config->ranges[i].flags);
        if (protection != writable)
            protect(config->ranges[i].start, config->ranges[i].end, protection);
    }
    small_pages(config->template_bytes, config->small_pages_end);
    small_pages(config->mem_bytes - HVT_MEM_GRANULE, config->mem_bytes);
}
