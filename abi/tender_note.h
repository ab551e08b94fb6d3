/*
 * Macros that put notes into an ELF file. Every hvt unikernel has two: one names its ABI, the other
 * the devices that it wants. The third is ours, and names the features of our extension that it can
 * use. A loader reads only the first note of a PT_NOTE segment. So each note goes into a section of
 * its own, and the linker script gives each of these sections a segment of its own.
 */
#ifndef TENDER_NOTE_H
#define TENDER_NOTE_H

#include "tender_abi.h"

struct tender_note_header {
    uint32_t namesz;
    uint32_t descsz;
    uint32_t type;
    char name[8];
};
_Static_assert(sizeof(struct tender_note_header) == HVT_NOTE_HEADER_BYTES, "note header");

struct tender_abi_note {
    struct tender_note_header h;
    struct hvt_abi_info info;
};

#define TENDER_ABI_NOTE                                                                                      \
    __attribute__((section(".note.solo5.abi"), aligned(4), used))                                            \
    const struct tender_abi_note tender_abi_note = {                                                         \
        {6, sizeof(struct hvt_abi_info), HVT_NOTE_ABI_TYPE, "Solo5"},                                        \
        {HVT_ABI_TARGET_HVT, HVT_ABI_VERSION, 0, 0}}

struct tender_extension_note {
    struct tender_note_header h;
    struct tender_extension_info info;
};

/*
 * TENDER_EXTENSION_NOTE(TENDER_FEATURE_GATE); asks for features. The extension block contains the
 * granted ones.
 */
#define TENDER_EXTENSION_NOTE(wanted)                                                                        \
    __attribute__((section(".note.tender"), aligned(4), used))                                               \
    const struct tender_extension_note tender_extension_note = {                                             \
        {7, sizeof(struct tender_extension_info), TENDER_NOTE_EXTENSION_TYPE, "Tender"},                     \
        {TENDER_EXTENSION_VERSION, (wanted), 0, 0}}

/*
 * TENDER_MANIFEST(2, TENDER_NET("service0"), TENDER_BLOCK("storage"));
 *
 * The count is the number of devices. The macro adds the reserved first entry. The handles are 1,
 * 2, ... in the order of the list.
 */
#define TENDER_NET(device_name)   {.name = device_name, .type = MFT_NET_BASIC}
#define TENDER_BLOCK(device_name) {.name = device_name, .type = MFT_BLOCK_BASIC}
#define TENDER_MANIFEST(count, ...)                                                                          \
    __attribute__((section(".note.solo5.manifest"), aligned(8), used)) const struct {                        \
        struct tender_note_header h;                                                                         \
        uint32_t padding; /* aligns the data to 8 bytes; descsz includes it */                               \
        uint32_t version;                                                                                    \
        uint32_t entries;                                                                                    \
        struct mft_entry e[(count) + 1];                                                                     \
    } tender_manifest_note = {                                                                               \
        {6, 4 + 8 + sizeof(struct mft_entry) * ((count) + 1), HVT_NOTE_MFT_TYPE, "Solo5"},                   \
        0,                                                                                                   \
        MFT_VERSION,                                                                                         \
        (count) + 1,                                                                                         \
        {{.type = MFT_RESERVED_FIRST}, ##__VA_ARGS__}}

#endif
