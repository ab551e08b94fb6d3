/*
 * From the arguments for devices to open devices, as in tender/cli/attach.py and tender/manifest.py: settings
 * apply in the order given, the last one for a device wins, and each declared device must get exactly one.
 */
#include "launcher.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "device.h"
#include "device_words.h"

#define LOCK_LOOK_NS 50000000 /* between two checks of a lock that another process holds */

/* What the arguments choose for a handle. */
static struct choice {
    bool given; /* the option with the name of its kind was given; other options only add to it */
    struct device_settings settings;
} chosen[MFT_MAX_ENTRIES];

/* Returns the handle of the device that a setting is for. */
static uint32_t find(const struct elf_image *image, const struct setting *setting)
{
    uint32_t found = 0, count = 0;
    for (uint32_t i = 1; i < image->manifest.entries; i++) {
        const struct mft_entry *entry = &image->manifest.e[i];
        if (entry->type != setting->type)
            continue;
        if (setting->name_len && (strlen(entry->name) != setting->name_len ||
                                  memcmp(entry->name, setting->name, setting->name_len) != 0))
            continue;
        found = i;
        count++;
    }
    if (count != 1) {
        char name[MFT_NAME_BYTES] = "";
        memcpy(name, setting->name, setting->name_len);
        leave_to_python(says_undeclared, name);
    }
    return found;
}

static void refuse_the_rest(const struct elf_image *image)
{
    static char text[MFT_MAX_ENTRIES * 360 + 80]; /* on the stack, its pages would always be touched */
    size_t at = 0;
    for (uint32_t i = 1; i < image->manifest.entries; i++)
        if (!chosen[i].given && image->manifest.e[i].type < MFT_RESERVED_FIRST) {
            uint32_t type = image->manifest.e[i].type;
            at += (size_t)snprintf(text + at, sizeof text - at, says_unattached,
                                   shown(image->manifest.e[i].name),
                                   device_word(type) ? device_word(type) : "<undefined type>");
            text[at++] = '\n'; /* there is space: a shown name takes at most 360 bytes */
        }
    if (at)
        leave_to_python("%s%s%s", text, says_attach_all, says_see_help);
}

/* Waits a moment for a lock that another process holds. False: the time is over, and Python must not wait
 * again. */
static bool wait_for_lock(const struct request *request, uint64_t until_ns)
{
    static char none[] = "0", option[] = "--lock-wait=0";
    static const struct timespec moment = {0, LOCK_LOOK_NS};
    if (signal_caught())
        leave_to_python("stopped by a signal");
    if (monotonic_ns() < until_ns) {
        (void)nanosleep(&moment, NULL);
        return true;
    }
    if (request->wait_word)
        *request->wait_word = **request->wait_word == '-' ? option : none;
    else
        (void)setenv("TENDER_LOCK_WAIT", none, true);
    return false;
}

/* Opens what was chosen for a handle, and attaches it. Waits for a lock that another process holds. */
static void attach(const struct request *request, uint64_t lock_until_ns, struct vm *vm, uint32_t handle,
                   const struct device_guest *guest, struct mft_entry *entry)
{
    struct device_settings *settings = &chosen[handle].settings;
    struct device_error error;
    settings->reattach = request->net_reattach;
    if (settings->fd >= 0 && device_check_inherited(entry->type, settings->fd, &error) < 0)
        leave_to_python("%s", error.text);
    while (device_attach(vm, handle, settings, guest, entry, &error) < 0)
        if (error.problem != DEVICE_LOCKED || !(request->lock_wait_s > 0) ||
            !wait_for_lock(request, lock_until_ns))
            leave_to_python("%s", error.text);
}

void devices_attach(const struct request *request, const struct elf_image *image, struct vm *vm,
                    uint32_t ring_mode, struct devices *devices)
{
    for (uint32_t i = 1; i < image->manifest.entries; i++)
        chosen[i].settings = DEVICE_SETTINGS_DEFAULTS;
    for (size_t i = 0; i < request->setting_count; i++) {
        const struct setting *setting = &request->settings[i];
        struct choice *choice = &chosen[find(image, setting)];
        (void)device_configure(setting->type, &choice->settings, setting->option, setting->value,
                               request->solo5); /* request.c has checked it */
        choice->given = choice->given || strcmp(setting->option, device_name(setting->type)) == 0;
    }
    bool reattaches = false;
    refuse_the_rest(image);
    memcpy(&devices->manifest, &image->manifest, image->mft_bytes);
    const struct device_guest guest = {&devices->manifest, image->extensions, ring_mode};
    const uint64_t lock_until_ns =
        request->lock_wait_s > 0 ? monotonic_ns() + (uint64_t)(request->lock_wait_s * 1e9) : 0;
    for (uint32_t i = 1; i < image->manifest.entries; i++) {
        struct mft_entry *entry = &devices->manifest.e[i];
        if (entry->type >= MFT_RESERVED_FIRST)
            continue;
        attach(request, lock_until_ns, vm, i, &guest, entry);
        reattaches = reattaches || chosen[i].settings.reattaches;
    }
    if (request->net_reattach && !reattaches)
        leave_to_python("%s\nInvalid option: `--net-reattach'", says_nothing_to_reattach);
}
