/*
 * The manifest: the devices that the image declares, filled in by the tender. A handle is an index
 * into it.
 */
#include "kernel.h"

static const struct mft *manifest;

void manifest_init(const struct mft *from_tender)
{
    if (from_tender->version != MFT_VERSION || from_tender->entries > MFT_MAX_ENTRIES) {
        panic("manifest: version %u with %u entries; this kernel reads version %u with at most %u",
              from_tender->version, from_tender->entries, (unsigned)MFT_VERSION, (unsigned)MFT_MAX_ENTRIES);
    }
    manifest = from_tender;
}

const struct mft *guest_manifest(void)
{
    return manifest;
}

const struct mft_entry *manifest_entry(const char *name, uint32_t type, uint64_t *handle)
{
    for (uint32_t i = 1; i < manifest->entries; i++) {
        const struct mft_entry *entry = &manifest->e[i];
        if (entry->type == type && entry->attached && strncmp(entry->name, name, MFT_NAME_BYTES) == 0) {
            *handle = i;
            return entry;
        }
    }
    return NULL;
}

int manifest_find(const char *name, uint32_t type)
{
    uint64_t handle;
    return manifest_entry(name, type, &handle) ? (int)handle : -1;
}
