/*
 * Static asserts on every offset and size of tender_abi.h. A wrong layout is a compile error on
 * both sides.
 */
#ifndef TENDER_ABI_CHECK_H
#define TENDER_ABI_CHECK_H

#include <stddef.h>

#define ABI_SIZE(type, bytes) _Static_assert(sizeof(struct type) == (bytes), "size of struct " #type)
#define ABI_AT(type, field, offset)                                                                          \
    _Static_assert(offsetof(struct type, field) == (offset), "offset of " #type "." #field)

ABI_SIZE(hvt_abi_info, 16);
ABI_AT(hvt_abi_info, target, 0);
ABI_AT(hvt_abi_info, version, 4);

ABI_SIZE(mft_entry, 104);
ABI_AT(mft_entry, name, 0);
ABI_AT(mft_entry, type, 68);
ABI_AT(mft_entry, u.block.capacity, 72);
ABI_AT(mft_entry, u.block.block_size, 80);
ABI_AT(mft_entry, u.net.mac, 72);
ABI_AT(mft_entry, u.net.mtu, 78);
ABI_AT(mft_entry, host_private, 88);
ABI_AT(mft_entry, attached, 96);
ABI_SIZE(mft, 8 + 104 * MFT_MAX_ENTRIES);
ABI_AT(mft, version, 0);
ABI_AT(mft, entries, 4);
ABI_AT(mft, e, 8);
_Static_assert(sizeof(((struct mft_entry *)0)->name) == MFT_NAME_BYTES, "manifest name");
_Static_assert(HVT_NOTE_MFT_MAX == sizeof(struct mft) + 4, "a full manifest and its padding fill the note");

ABI_SIZE(hvt_boot_info, 56);
ABI_AT(hvt_boot_info, mem_size, 0);
ABI_AT(hvt_boot_info, kernel_end, 8);
ABI_AT(hvt_boot_info, cpu_cycle_freq, 16);
ABI_AT(hvt_boot_info, cmdline, 24);
ABI_AT(hvt_boot_info, mft, 32);
ABI_AT(hvt_boot_info, host_features, 40);
ABI_AT(hvt_boot_info, guest_features, 44);
ABI_AT(hvt_boot_info, net_ring, 48);

ABI_SIZE(hvt_walltime, 8);
ABI_SIZE(hvt_puts, 16);
ABI_AT(hvt_puts, data, 0);
ABI_AT(hvt_puts, len, 8);
ABI_SIZE(hvt_poll, 24);
ABI_AT(hvt_poll, timeout_nsecs, 0);
ABI_AT(hvt_poll, ready_set, 8);
ABI_AT(hvt_poll, ret, 16);
ABI_SIZE(hvt_block_write, 40);
ABI_AT(hvt_block_write, handle, 0);
ABI_AT(hvt_block_write, offset, 8);
ABI_AT(hvt_block_write, data, 16);
ABI_AT(hvt_block_write, len, 24);
ABI_AT(hvt_block_write, ret, 32);
ABI_SIZE(hvt_block_read, 40);
ABI_AT(hvt_block_read, handle, 0);
ABI_AT(hvt_block_read, offset, 8);
ABI_AT(hvt_block_read, data, 16);
ABI_AT(hvt_block_read, len, 24);
ABI_AT(hvt_block_read, ret, 32);
ABI_SIZE(hvt_net_write, 32);
ABI_AT(hvt_net_write, handle, 0);
ABI_AT(hvt_net_write, data, 8);
ABI_AT(hvt_net_write, len, 16);
ABI_AT(hvt_net_write, ret, 24);
ABI_SIZE(hvt_net_read, 32);
ABI_AT(hvt_net_read, handle, 0);
ABI_AT(hvt_net_read, data, 8);
ABI_AT(hvt_net_read, len, 16);
ABI_AT(hvt_net_read, ret, 24);
ABI_SIZE(hvt_halt, 16);
ABI_AT(hvt_halt, cookie, 0);
ABI_AT(hvt_halt, exit_status, 8);
ABI_SIZE(hvt_trap_cookie, 56);
ABI_AT(hvt_trap_cookie, cr2, 0);
ABI_AT(hvt_trap_cookie, error_code, 8);
ABI_AT(hvt_trap_cookie, rip, 16);
ABI_AT(hvt_trap_cookie, cs, 24);
ABI_AT(hvt_trap_cookie, rflags, 32);
ABI_AT(hvt_trap_cookie, rsp, 40);
ABI_AT(hvt_trap_cookie, ss, 48);

ABI_SIZE(hvt_ring_entry, 32);
ABI_AT(hvt_ring_entry, operation, 0);
ABI_AT(hvt_ring_entry, handle, 4);
ABI_AT(hvt_ring_entry, data, 8);
ABI_AT(hvt_ring_entry, len, 16);
ABI_AT(hvt_ring_entry, id, 20);
ABI_SIZE(hvt_ring_commit, 16);
ABI_AT(hvt_ring_commit, id, 0);
ABI_AT(hvt_ring_commit, ret, 4);
ABI_AT(hvt_ring_commit, len, 8);
ABI_SIZE(hvt_net_ring, 49280);
ABI_AT(hvt_net_ring, ent_tail, 0);
ABI_AT(hvt_net_ring, com_head, 4);
ABI_AT(hvt_net_ring, ent_head, 64);
ABI_AT(hvt_net_ring, com_tail, 68);
ABI_AT(hvt_net_ring, needs_kick, 72);
ABI_AT(hvt_net_ring, entries, 128);
ABI_AT(hvt_net_ring, commits, 32896);
_Static_assert(sizeof(struct hvt_net_ring) <= HVT_RING_AREA_BYTES, "the ring fits its area");
_Static_assert((HVT_RING_ENTRIES & (HVT_RING_ENTRIES - 1)) == 0, "slots follow when an index wraps");
_Static_assert(HVT_RING_AREA_BYTES == HVT_MEM_GRANULE, "memory before the ring ends at a large page");

ABI_SIZE(tender_extension_info, 16);
ABI_AT(tender_extension_info, version, 0);
ABI_AT(tender_extension_info, features, 4);
ABI_SIZE(tender_extension, 24);
ABI_AT(tender_extension, magic, 0);
ABI_AT(tender_extension, version, 4);
ABI_AT(tender_extension, features, 8);
ABI_AT(tender_extension, reserved, 12);
ABI_AT(tender_extension, gate, 16);

ABI_SIZE(tender_block_request, 40);
ABI_AT(tender_block_request, op, 0);
ABI_AT(tender_block_request, ret, 4);
ABI_AT(tender_block_request, handle, 8);
ABI_AT(tender_block_request, offset, 16);
ABI_AT(tender_block_request, data, 24);
ABI_AT(tender_block_request, len, 32);
ABI_SIZE(tender_block_batch, 24);
ABI_AT(tender_block_batch, requests, 0);
ABI_AT(tender_block_batch, count, 8);
ABI_AT(tender_block_batch, done, 12);
ABI_AT(tender_block_batch, ret, 16);
ABI_SIZE(tender_net_frame, 32);
ABI_AT(tender_net_frame, data, 0);
ABI_AT(tender_net_frame, len, 8);
ABI_AT(tender_net_frame, ret, 12);
ABI_AT(tender_net_frame, flags, 16);
ABI_AT(tender_net_frame, gso_type, 17);
ABI_AT(tender_net_frame, hdr_len, 18);
ABI_AT(tender_net_frame, gso_size, 20);
ABI_AT(tender_net_frame, csum_start, 22);
ABI_AT(tender_net_frame, csum_offset, 24);
ABI_SIZE(tender_net_batch, 48);
ABI_AT(tender_net_batch, handle, 0);
ABI_AT(tender_net_batch, frames, 8);
ABI_AT(tender_net_batch, tx_count, 16);
ABI_AT(tender_net_batch, rx_count, 20);
ABI_AT(tender_net_batch, tx_done, 24);
ABI_AT(tender_net_batch, rx_done, 28);
ABI_AT(tender_net_batch, timeout_ns, 32);
ABI_AT(tender_net_batch, ret, 40);
ABI_AT(tender_net_batch, offload, 44);

/* The extension's addresses come after everything that Solo5's ABI puts there, and do not overlap. */
_Static_assert(HVT_BOOT_INFO_GPA + sizeof(struct hvt_boot_info) + sizeof(struct mft) + HVT_CMDLINE_BYTES <=
                   TENDER_TRAMPOLINES_GPA,
               "boot info, manifest and command line end before the trampolines");
_Static_assert(TENDER_TRAMPOLINES_GPA < TENDER_GATE_GPA, "space for trampolines");
_Static_assert(TENDER_EXTENSION_GPA + sizeof(struct tender_extension) <= TENDER_GATE_BACKEND_GPA,
               "the block ends before the backend's part of the page");
_Static_assert(TENDER_GATE_GPA + TENDER_HYPERCALL_MAX * TENDER_GATE_SLOT_BYTES <= TENDER_EXTENSION_GPA,
               "the slots end before the block");
_Static_assert(TENDER_GATE_BACKEND_GPA < TENDER_GATE_GPA + HVT_PAGE_BYTES &&
                   TENDER_GATE_GPA + HVT_PAGE_BYTES == HVT_GUEST_MIN_GPA,
               "the gate page is the last below the lowest load address");

#undef ABI_SIZE
#undef ABI_AT
#endif
