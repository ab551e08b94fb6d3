/*
 * What others know of a kind of device. abi/devices.def has a row a kind; handlers of its hypercalls are
 * rows of abi/hypercalls.def. Nobody else names a kind.
 */
#ifndef TENDER_DEVICE_OPS_H
#define TENDER_DEVICE_OPS_H

#include "vm.h"

struct device_error;
struct device_guest;
struct device_settings;

/* Where a device writes in its file. */
struct device_places {
    uint64_t bytes; /* the file's, from its beginning */
    bool read_only;
};

/* A descriptor of what is asked for, the caller's to close and closed on exec; `entry` is filled in, as the
 * guest will see it. -1 with *error. `guest` NULL: not known yet. */
typedef int device_opener(struct device_settings *settings, const struct device_guest *guest,
                          struct mft_entry *entry, struct device_error *error);
/* What `device` keeps of it, whose type and descriptor are set. 0 or -errno. */
typedef int device_attacher(const struct device_settings *settings, const struct mft_entry *entry,
                            struct vm_device *device);

/* What a device answers a guest ABI's front. Those that a guest is told have the numbers of hvt's results,
 * whose front hands them on as they are. */
enum device_answer {
    DEVICE_DONE = HVT_R_OK,
    DEVICE_NONE = HVT_R_AGAIN,     /* there is no frame */
    DEVICE_INVALID = HVT_R_EINVAL, /* no such device, or none that could do this */
    DEVICE_FAILED = HVT_R_EUNSPEC, /* the host refuses, or the device may not be written */
    DEVICE_BAD_RANGE = -1,         /* the guest may not name this memory, which ends its run */
    DEVICE_EXIT = -2, /* a stop or a signal amid it: the event is there, and the same call goes on with it */
};

/* For the process that holds the VM. */
struct device_ops {
    const char *cannot; /* what a message begins with that there is no such device */
    device_opener *open;
    device_attacher *attach; /* NULL: it keeps nothing but its descriptor */

    /* Its other end may go, and come again: the run may be left with EVENT_NETWORK. NULL: never. */
    bool (*may_detach)(const struct vm_device *device);

    /* For all devices of the kind at once; each may be NULL. */
    /* Zeroed memory behind the guest's end is shared with it; `mode` is enum vm_ring_mode. NULL: none is. */
    void (*offer)(struct vm *vm, void *area, uint32_t mode);
    /* This process runs this guest alone and is about to lose rights: threads are made now. */
    void (*prepare)(struct vm *vm);
    int (*written_fd)(const struct vm *vm); /* one that the kind itself made and writes; -1: none */
    void (*end)(struct vm *vm);     /* the guest has ended: serves what it left, which may change the event */
    void (*stop)(struct vm *vm);    /* the guest runs no more: no thread of the kind's uses anything */
    void (*reset)(struct vm *vm);   /* behind stop(): as before the first run; guest memory is so already */
    void (*release)(struct vm *vm); /* behind stop(): what the kind has made, descriptors apart */
};

/* For the process that runs the guest, too. If that is another, it gets what the kind keeps of each device.
 */
struct device_run_ops {
    /* A device whose bytes have places, as a disk's; NULL: it sends and receives messages. */
    struct device_places (*places)(const struct vm_device *device);
    /* Of all devices of the kind: files become memory where they can. A fault there is the caller's to
     * handle. `forks`: this process may. NULL: none has a file. */
    void (*map)(struct vm *vm, bool forks);
};

#define DEVICE(type, name, word)                                                                             \
    extern const struct device_ops name##_ops;                                                               \
    extern const struct device_run_ops name##_run_ops;
#include "devices.def"

/* By type (MFT_...); NULL: there is none. */
extern const struct device_ops *const device_kinds[DEVICE_TYPES];
extern const struct device_run_ops *const device_run_kinds[DEVICE_TYPES];

/* The table of kinds: one past the highest type; of a type the kind's name, and its word in messages. NULL:
 * there is none. */
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

/* Whether a device of the VM has use for such memory. */
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

/* The guest runs no more, and there is an event. */
static inline void devices_end(struct vm *vm)
{
    for (uint32_t type = 0; type < DEVICE_TYPES; type++)
        if (device_kinds[type] && device_kinds[type]->end)
            device_kinds[type]->end(vm);
}

/* Whether devices_map() has anything to do. */
static inline bool devices_can_map(const struct vm *vm)
{
    bool found = false;
    for (uint32_t type = 0; type < DEVICE_TYPES; type++)
        found = found || devices_of_type_map(vm, type);
    return found;
}

/* Of each kind whose files can be memory. */
static inline void devices_map(struct vm *vm, bool forks)
{
    for (uint32_t type = 0; type < DEVICE_TYPES; type++)
        if (devices_of_type_map(vm, type))
            device_run_kinds[type]->map(vm, forks);
}

#endif
