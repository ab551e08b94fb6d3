/*
 * From the words about devices to open ones, as tender/cli/attach.py and tender/manifest.py have it: settings
 * are applied in the order given, the last for a device wins, and each declared device has exactly one.
 */
#include "launcher.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "device.h"
#include "device_ops.h"

#define LOCK_LOOK_NS 50000000 /* between two looks at a lock that another has */

/* What was chosen for a handle. */
struct choice {
    const struct setting *device;
    const struct setting *mac;
    uint32_t sector_size;
};

static uint32_t type_of(enum option_kind kind)
{
    return kind == SETTING_NET || kind == SETTING_NET_MAC ? MFT_NET_BASIC : MFT_BLOCK_BASIC;
}

/* The handle of the device that a setting is about. */
static uint32_t find(const struct elf_image *image, const struct setting *setting)
{
    uint32_t found = 0, count = 0;
    for (uint32_t i = 1; i < image->manifest.entries; i++) {
        const struct mft_entry *entry = &image->manifest.e[i];
        if (entry->type != type_of(setting->kind))
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

static void refuse_the_rest(const struct elf_image *image, const struct choice *chosen)
{
    static char text[MFT_MAX_ENTRIES * 360 + 80]; /* on the stack its pages would be touched in any case */
    size_t at = 0;
    for (uint32_t i = 1; i < image->manifest.entries; i++)
        if (!chosen[i].device && image->manifest.e[i].type < MFT_RESERVED_FIRST) {
            uint32_t type = image->manifest.e[i].type;
            at += (size_t)snprintf(text + at, sizeof text - at, says_unattached,
                                   shown(image->manifest.e[i].name),
                                   device_word(type) ? device_word(type) : "<undefined type>");
            text[at++] = '\n'; /* there is room: a name is shown in 360 bytes at most */
        }
    if (at)
        leave_to_python("%s%s%s", text, says_attach_all, says_see_help);
}

static void check_inherited(const struct setting *device)
{
    struct device_error error;
    if (!device->value && device_check_inherited(device->fd, device->kind == SETTING_NET, &error) < 0)
        leave_to_python("%s", error.text);
}

static void attach_net(const struct request *request, const struct choice *choice,
                       const struct elf_image *image, struct vm *vm, uint32_t handle, struct mft_entry *entry,
                       uint32_t ring_mode)
{
    const enum net_use use = net_use_for(&image->manifest, image->extensions, ring_mode);
    struct device_error error;
    uint32_t mtu = 1500;
    check_inherited(choice->device);
    int fd = choice->device->value ? net_open_tap(choice->device->value, use, &mtu, &error)
                                   : net_duplicate(choice->device->fd, &error);
    if (fd < 0)
        leave_to_python("%s", error.text);
    memset(entry->u.net.mac, 0, sizeof entry->u.net.mac);
    if (choice->mac)
        memcpy(entry->u.net.mac, choice->mac->mac, sizeof entry->u.net.mac);
    entry->u.net.mtu = (uint16_t)mtu;
    if (net_choose_mac(entry->u.net.mac) < 0 || vm_attach_net(vm, handle, fd, use) < 0)
        leave_to_python("%s: cannot be attached", shown(entry->name));
    if (choice->device->value)
        vm_net_is_named(vm, handle, request->net_reattach);
}

/* Waits a moment for a lock that another has. False: the time is over, and Python need not wait again. */
static bool wait_for_lock(const struct request *request, uint64_t until_ns)
{
    static char none[] = "0", option[] = "--lock-wait=0";
    static const struct timespec moment = {0, LOCK_LOOK_NS};
    if (signal_caught())
        leave_to_python("a signal has come");
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

/* A descriptor of the disk, or -1. */
static int open_disk(const struct setting *device, uint64_t *capacity, struct device_error *error)
{
    const struct block_use use = {device->read_only, device->raw};
    char name[16];
    (void)snprintf(name, sizeof name, "@%d", device->fd);
    return device->value ? block_open(device->value, use, capacity, error)
                         : block_duplicate(device->fd, name, use, capacity, error);
}

static void attach_block(const struct request *request, uint64_t lock_until_ns, const struct choice *choice,
                         struct vm *vm, uint32_t handle, struct mft_entry *entry)
{
    const struct setting *device = choice->device;
    struct device_error error;
    uint64_t capacity = 0;
    int fd;
    check_inherited(device);
    do {
        fd = open_disk(device, &capacity, &error);
    } while (fd < 0 && error.problem == DEVICE_BLOCK_LOCKED && request->lock_wait_s > 0 &&
             wait_for_lock(request, lock_until_ns));
    uint32_t sector_size = choice->sector_size ? choice->sector_size : 512;
    if (fd < 0 || block_check_capacity(entry->name, capacity, sector_size, &error) < 0)
        leave_to_python("%s", error.text);
    entry->u.block.capacity = capacity;
    entry->u.block.block_size = (uint16_t)sector_size;
    if (vm_attach_block(vm, handle, fd, capacity, device->read_only) < 0)
        leave_to_python("%s: cannot be attached", shown(entry->name));
}

void devices_attach(const struct request *request, const struct elf_image *image, struct vm *vm,
                    uint32_t ring_mode, struct devices *devices)
{
    struct choice chosen[MFT_MAX_ENTRIES] = {0};
    for (size_t i = 0; i < request->setting_count; i++) {
        const struct setting *setting = &request->settings[i];
        struct choice *choice = &chosen[find(image, setting)];
        if (setting->kind == SETTING_NET_MAC)
            choice->mac = setting;
        else if (setting->kind == SETTING_SECTOR_SIZE)
            choice->sector_size = setting->sector_size;
        else
            choice->device = setting;
    }
    refuse_the_rest(image, chosen);
    memcpy(&devices->manifest, &image->manifest, image->mft_bytes);
    const uint64_t lock_until_ns =
        request->lock_wait_s > 0 ? monotonic_ns() + (uint64_t)(request->lock_wait_s * 1e9) : 0;
    for (uint32_t i = 1; i < image->manifest.entries; i++) {
        struct mft_entry *entry = &devices->manifest.e[i];
        if (entry->type >= MFT_RESERVED_FIRST)
            continue;
        if (entry->type == MFT_NET_BASIC)
            attach_net(request, &chosen[i], image, vm, i, entry, ring_mode);
        else
            attach_block(request, lock_until_ns, &chosen[i], vm, i, entry);
        entry->attached = 1;
    }
    if (request->net_reattach && !vm_has_named_net(vm))
        leave_to_python("%s\nInvalid option: `--net-reattach'", says_nothing_to_reattach);
}
