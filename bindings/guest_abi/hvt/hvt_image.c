/*
 * The rules by which a file is accepted as a unikernel of Solo5's hvt, in the order of the
 * contract:
 *
 *   header -> ABI note -> target and version -> manifest note -> manifest -> our note -> entry -> segments
 *
 * The order decides which message is printed first, and users grep for it. So elf_image_parse()
 * makes its calls in this order. Each pass reads the program headers again (elf_file.c).
 */
#include <stdbool.h>
#include <string.h>

#include "elf_file.h"
#include "hypercall.h"

#define ABI_DATA_MIN       8 /* target and version */
#define EXTENSION_DATA_MIN 8 /* version and features */

static const struct elf_note_kind abi_note = {
    .owner = "Solo5",
    .owner_bytes = sizeof "Solo5",
    .type = HVT_NOTE_ABI_TYPE,
    .align = HVT_NOTE_ABI_ALIGN,
    .max_bytes = HVT_NOTE_ABI_MAX,
    .refuses_malformed = true,
};
static const struct elf_note_kind manifest_note = {
    .owner = "Solo5",
    .owner_bytes = sizeof "Solo5",
    .type = HVT_NOTE_MFT_TYPE,
    .align = HVT_NOTE_MFT_ALIGN,
    .max_bytes = HVT_NOTE_MFT_MAX,
    .refuses_malformed = true,
};
/*
 * Solo5 does not read any note after its own two. So such a note must not make this parser refuse a
 * file that does not have our note.
 */
static const struct elf_note_kind extension_note = {
    .owner = "Tender",
    .owner_bytes = sizeof "Tender",
    .type = TENDER_NOTE_EXTENSION_TYPE,
    .align = TENDER_NOTE_EXTENSION_ALIGN,
    .max_bytes = TENDER_NOTE_EXTENSION_MAX,
    .refuses_malformed = false,
};

static int refuse_target(struct elf_error *error, uint64_t offset, uint32_t target)
{
    static const char *const names[] = {
        [HVT_ABI_TARGET_SPT] = "spt",   [HVT_ABI_TARGET_VIRTIO] = "virtio",
        [HVT_ABI_TARGET_MUEN] = "muen", [HVT_ABI_TARGET_GENODE] = "genode",
        [HVT_ABI_TARGET_XEN] = "xen",
    };

    if (target < sizeof names / sizeof names[0] && names[target] != NULL)
        return elf_refuse(error, ELF_BAD_ABI, offset,
                          "Executable is not for the solo5-hvt target (it is for %s)", names[target]);
    return elf_refuse(error, ELF_BAD_ABI, offset,
                      "Executable is not for the solo5-hvt target (it is for unknown target %u)", target);
}

/* Reads the ABI note, and accepts any content. */
static int read_abi(struct elf_file *file, struct elf_image *image, uint64_t *offset, struct elf_error *error)
{
    uint8_t data[HVT_NOTE_ABI_MAX];
    struct hvt_abi_info info = {0};
    struct elf_note note;

    int found = elf_note_find(file, &abi_note, &note, error);
    if (found < 0)
        return -1;
    if (found == 0)
        return elf_refuse(error, ELF_BAD_ABI, 0, "No Solo5 ABI information found in executable");
    if (note.data_bytes < ABI_DATA_MIN)
        return elf_refuse(error, ELF_BAD_NOTE, note.offset,
                          ELF_INVALID "phdr[%u] note does not fall within valid size (%u < %u)",
                          note.phdr_index, note.data_bytes, (unsigned)ABI_DATA_MIN);
    if (elf_note_read(file->source, &note, data, error) < 0)
        return -1;

    memcpy(&info, data, ABI_DATA_MIN);
    image->abi_target = info.target;
    image->abi_version = info.version;
    *offset = note.offset;
    return 0;
}

static int load_abi(struct elf_file *file, struct elf_image *image, struct elf_error *error)
{
    uint64_t offset = 0;

    if (read_abi(file, image, &offset, error) < 0)
        return -1;
    if (image->abi_target != HVT_ABI_TARGET_HVT)
        return refuse_target(error, offset, image->abi_target);
    if (image->abi_version < HVT_ABI_VERSION_MIN || image->abi_version > HVT_ABI_VERSION)
        return elf_refuse(error, ELF_BAD_ABI, offset, "Executable requests unsupported ABI version %u",
                          image->abi_version);
    return 0;
}

static bool manifest_is_valid(const struct mft *mft, uint64_t bytes)
{
    const size_t header = offsetof(struct mft, e);

    if (bytes < header || mft->version != MFT_VERSION || mft->entries < 1 || mft->entries > MFT_MAX_ENTRIES ||
        bytes != header + mft->entries * sizeof mft->e[0])
        return false;
    if (mft->e[0].type != MFT_RESERVED_FIRST || mft->e[0].name[0] != '\0')
        return false;
    for (uint32_t i = 0; i < mft->entries; i++)
        if (mft->e[i].name[MFT_NAME_BYTES - 1] != '\0' || mft->e[i].attached != 0)
            return false;
    return true;
}

/*
 * `invalid` is the message for a manifest that breaks a rule. Solo5's tender and its elftool have
 * different ones.
 */
static int load_manifest(struct elf_file *file, struct elf_image *image, const char *invalid,
                         struct elf_error *error)
{
    struct mft *mft = &image->manifest;
    struct elf_note note;

    _Static_assert(sizeof *mft >= HVT_NOTE_MFT_MAX - 4, "the note's data fit");
    int found = elf_note_find(file, &manifest_note, &note, error);
    if (found < 0)
        return -1;
    if (found == 0)
        return elf_refuse(error, ELF_BAD_MANIFEST, 0, "No Solo5 manifest found in executable");
    if (elf_note_read(file->source, &note, mft, error) < 0)
        return -1;
    if (!manifest_is_valid(mft, note.data_bytes))
        return elf_refuse(error, ELF_BAD_MANIFEST, note.offset, "%s", invalid);

    /*
     * A file cannot choose a MAC, a capacity or a host descriptor: the monitor sets them when it
     * attaches devices.
     */
    for (uint32_t i = 0; i < mft->entries; i++) {
        memset(&mft->e[i].u, 0, sizeof mft->e[i].u);
        mft->e[i].host_private = 0;
        memset(mft->e[i].padding, 0, sizeof mft->e[i].padding);
    }
    image->mft_bytes = note.data_bytes;
    return 0;
}

/*
 * Our note only asks for features. A file without it, or with an unknown version or unknown bits,
 * is accepted, and gets fewer features. Only a note of ours that is malformed is refused.
 */
static int load_extension(struct elf_file *file, struct elf_image *image, struct elf_error *error)
{
    uint8_t data[TENDER_NOTE_EXTENSION_MAX];
    struct tender_extension_info info = {0};
    struct elf_note note;

    int found = elf_note_find(file, &extension_note, &note, error);
    if (found <= 0)
        return found;
    if (note.data_bytes < EXTENSION_DATA_MIN)
        return elf_refuse(error, ELF_BAD_NOTE, note.offset,
                          ELF_INVALID "phdr[%u] note does not fall within valid size (%u < %u)",
                          note.phdr_index, note.data_bytes, (unsigned)EXTENSION_DATA_MIN);
    if (elf_note_read(file->source, &note, data, error) < 0)
        return -1;

    memcpy(&info, data, EXTENSION_DATA_MIN);
    if (info.version == TENDER_EXTENSION_VERSION)
        image->extensions = features_granted(info.features);
    return 0;
}

int elf_image_parse(const struct byte_source *source, struct elf_image *image, struct elf_error *error)
{
    struct elf_file file;

    if (elf_file_open(source, &file, image, error) < 0 || load_abi(&file, image, error) < 0 ||
        load_manifest(&file, image, "Solo5 manifest is invalid", error) < 0 ||
        load_extension(&file, image, error) < 0 ||
        elf_check_entry(image->entry, HVT_MEM_MAX, ELF_BAD_FILE, error) < 0 ||
        elf_segments_load(&file, image, error) < 0)
        return -1;
    return 0;
}

int elf_image_query_abi(const struct byte_source *source, struct elf_image *image, struct elf_error *error)
{
    struct elf_file file;
    uint64_t offset = 0;

    if (elf_file_open(source, &file, image, error) < 0)
        return -1;
    return read_abi(&file, image, &offset, error);
}

int elf_image_query_manifest(const struct byte_source *source, struct elf_image *image,
                             struct elf_error *error)
{
    struct elf_file file;

    if (elf_file_open(source, &file, image, error) < 0)
        return -1;
    return load_manifest(&file, image, "Manifest validation failed", error);
}
