/*
 * The interface of a kind of device to the other parts. abi/devices.def has one row for each kind,
 * and the handlers of its hypercalls are rows of abi/hypercalls.def. No other file outside of the
 * kind's folder names a kind.
 */
#ifndef TENDER_DEVICE_OPS_H
#define TENDER_DEVICE_OPS_H

#include "vm.h"

struct device_error;
struct device_guest;
struct device_settings;

/* The places that a device may write in its file. */
struct device_places {
    uint64_t bytes; /* the length of the file that the device uses, from offset 0 */
    bool read_only;
};

/*
 * Opens what `settings` ask for. Returns a descriptor, which is close-on-exec and which the caller
 * must close, or -1 with *error. Fills `entry` as the guest will see it. `guest` is NULL if it is
 * not known yet.
 */
typedef int device_opener(struct device_settings *settings, const struct device_guest *guest,
                          struct mft_entry *entry, struct device_error *error);
/*
 * Sets the kind's own state in `device`, whose type and descriptor are set already. Returns 0 or
 * -errno.
 */
typedef int device_attacher(const struct device_settings *settings, const struct mft_entry *entry,
                            struct vm_device *device);

/*
 * A device's answer to the hypercall handlers of a guest ABI. The answers that the guest sees have
 * the numbers of hvt's results, so that hvt's handlers pass them on unchanged.
 */
enum device_answer {
    DEVICE_DONE = HVT_R_OK,
    DEVICE_NONE = HVT_R_AGAIN,     /* there is no frame */
    DEVICE_INVALID = HVT_R_EINVAL, /* no such device, or it cannot do this */
    DEVICE_FAILED = HVT_R_EUNSPEC, /* the host refuses, or the device is read-only */
    DEVICE_BAD_RANGE = -1,         /* the guest may not name this memory: its run ends */
    DEVICE_EXIT = -2, /* a stop or a signal came: the event is filled, and the resumed call continues */
};

/* For the process that holds the VM. */
struct device_ops {
    const char *cannot; /* the beginning of the message for a device that cannot be opened */
    device_opener *open;
    device_attacher *attach; /* NULL: the kind keeps no state except the descriptor */

    /*
     * Returns true if the device's other end may disappear and come back: the run may then exit
     * with EVENT_NETWORK. NULL: it never does.
     */
    bool (*may_detach)(const struct vm_device *device);

    /* The following functions are for all devices of the kind together. Each may be NULL. */
    /*
     * Offers the guest the zeroed memory at `area`, after the guest's end, which both share. `mode`
     * is enum vm_ring_mode. `area` NULL: no memory is shared.
     */
    void (*offer)(struct vm *vm, void *area, uint32_t mode);
    /* Makes threads now, because this process runs only this guest and is about to give up rights. */
    void (*prepare)(struct vm *vm);
    int (*written_fd)(const struct vm *vm); /* a descriptor that the kind made and writes; -1: none */
    void (*end)(struct vm *vm);   /* the guest has ended: serves what it left, which may change the event */
    void (*stop)(struct vm *vm);  /* the guest does not run: after this, no thread of the kind uses the VM */
    void (*reset)(struct vm *vm); /* after stop(): restores the state before the first run, except memory */
    void (*release)(struct vm *vm); /* after stop(): frees what the kind has made, except descriptors */
};

/*
 * Also for the process that runs the guest. If that is a different process, it gets a copy of the
 * kind's state of each device.
 */
struct device_run_ops {
    /* Returns the places of a device whose bytes have places, as a disk. NULL: it transfers messages. */
    struct device_places (*places)(const struct vm_device *device);
    /*
     * Maps the files of all devices of the kind where that is possible. The caller must handle a
     * fault in such a mapping. `forks`: this process may fork. NULL: no device of the kind has a
     * file.
     */
    void (*map)(struct vm *vm, bool forks);
};

#define DEVICE(type, name, word)                                                                             \
    extern const struct device_ops name##_ops;                                                               \
    extern const struct device_run_ops name##_run_ops;
#include "devices.def"

/* Indexed by type (MFT_...). NULL: there is no such kind. */
extern const struct device_ops *const device_kinds[DEVICE_TYPES];
extern const struct device_run_ops *const device_run_kinds[DEVICE_TYPES];

/*
 * The table of kinds: one past the highest type, the name of a type's kind, and its word in
 * messages. NULL: there is no such type.
 */
uint32_t device_types(void);
const char *device_name(uint32_t type);
const char *device_word(uint32_t type);

static inline const struct device_ops *device_ops_of(const struct vm_device *device)
{
    return device_kinds[device->type];
}

static inline bool device_has_places(const struct vm_device *device)
{
    return device_run_kinds[device->type] && device_run_kinds[device->type]->places;
}

static inline struct device_places device_places(const struct vm_device *device)
{
    return device_has_places(device) ? device_run_kinds[device->type]->places(device)
                                     : (struct device_places){0};
}

static inline bool devices_of_type_map(const struct vm *vm, uint32_t type)
{
    return vm->count_of[type] && device_run_kinds[type]->map;
}

/* Whether a device of the VM can use the memory that devices_offer() offers. */
static inline bool devices_want_area(const struct vm *vm)
{
    bool found = false;
    for (uint32_t type = 0; type < DEVICE_TYPES; type++)
        found = found || (vm->count_of[type] && device_kinds[type]->offer);
    return found;
}

static inline void devices_offer(struct vm *vm, uint8_t *area, uint32_t mode)
{
    for (uint32_t type = 0; type < DEVICE_TYPES; type++)
        if (device_kinds[type] && device_kinds[type]->offer)
            device_kinds[type]->offer(vm, area, mode);
}

static inline void devices_prepare(struct vm *vm)
{
    for (uint32_t type = 0; type < DEVICE_TYPES; type++)
        if (device_kinds[type] && device_kinds[type]->prepare)
            device_kinds[type]->prepare(vm);
}

/* The guest no longer runs, and the event is filled. */
static inline void devices_end(struct vm *vm)
{
    for (uint32_t type = 0; type < DEVICE_TYPES; type++)
        if (device_kinds[type] && device_kinds[type]->end)
            device_kinds[type]->end(vm);
}

/* Whether there is a device that devices_map() can map. */
static inline bool devices_can_map(const struct vm *vm)
{
    bool found = false;
    for (uint32_t type = 0; type < DEVICE_TYPES; type++)
        found = found || devices_of_type_map(vm, type);
    return found;
}

/* Maps the files of each kind that can map them. */
static inline void devices_map(struct vm *vm, bool forks)
{
    for (uint32_t type = 0; type < DEVICE_TYPES; type++)
        if (devices_of_type_map(vm, type))
            device_run_kinds[type]->map(vm, forks);
}

#endif
