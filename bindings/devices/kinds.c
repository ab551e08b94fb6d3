/* The kinds of devices by type, for the process that holds the VM; device_ops.h has the contract. */
#include "device_ops.h"

uint32_t device_types(void)
{
    return DEVICE_TYPES;
}

const char *device_name(uint32_t type)
{
    switch (type) {
#define DEVICE(type, name, word)                                                                             \
    case (type):                                                                                             \
        return #name;
#include "devices.def"
    default:
        return NULL;
    }
}

const char *device_word(uint32_t type)
{
    switch (type) {
#define DEVICE(type, name, word)                                                                             \
    case (type):                                                                                             \
        return word;
#include "devices.def"
    default:
        return NULL;
    }
}

const struct device_ops *const device_kinds[DEVICE_TYPES] = {
#define DEVICE(type, name, word) [type] = &name##_ops,
#include "devices.def"
};
