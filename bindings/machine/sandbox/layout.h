/*
 * The part of the guest's low memory that the sandbox uses for the guest's jumps into the program. It lies
 * between boot info, manifest and command line (start_state.h) and the lowest load address. The guest reads
 * and executes it, and never writes it.
 *
 *   0x80000 .. 0xff000  trampolines, one per patched call site (patch.h)
 *   0xfff00             the address of the program's entry, filled in when the program is loaded
 */
#ifndef TENDER_SANDBOX_LAYOUT_H
#define TENDER_SANDBOX_LAYOUT_H

#include "tender_abi.h"

#define TENDER_TRAMPOLINES_END  TENDER_GATE_GPA
#define TENDER_ENTRY_GPA        TENDER_GATE_BACKEND_GPA
#define TENDER_TRAMPOLINE_BYTES 32

_Static_assert(TENDER_TRAMPOLINES_GPA % TENDER_TRAMPOLINE_BYTES == 0, "a trampoline lies in one cache line");
_Static_assert(TENDER_TRAMPOLINES_GPA % HVT_PAGE_BYTES == 0 && TENDER_TRAMPOLINES_END % HVT_PAGE_BYTES == 0,
               "whole pages");
_Static_assert(TENDER_TRAMPOLINES_END <= TENDER_ENTRY_GPA && TENDER_ENTRY_GPA + 8 <= HVT_GUEST_MIN_GPA,
               "trampolines, entry and guest do not overlap");
_Static_assert(HVT_BOOT_INFO_GPA + sizeof(struct hvt_boot_info) + sizeof(struct mft) + HVT_CMDLINE_BYTES <=
                   TENDER_TRAMPOLINES_GPA,
               "the boot info ends below the trampolines");

#endif
