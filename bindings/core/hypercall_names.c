/* The names of the rows of hypercalls.def, and which features depend on which. */
#include "hypercall.h"

const char *hypercall_name(uint32_t number)
{
    switch (number) {
#define HYPERCALL(number, name, structure, access, feature, device)                                          \
    case number:                                                                                             \
        return #name;
#include "hypercalls.def"
    default:
        return NULL;
    }
}

const char *feature_name(uint32_t bit)
{
    switch (bit) {
#define FEATURE(bit, name, needs)                                                                            \
    case bit:                                                                                                \
        return name;
#include "hypercalls.def"
    default:
        return NULL;
    }
}

uint32_t features_granted(uint32_t wanted)
{
    uint32_t granted = 0;
#define FEATURE(bit, name, needs)                                                                            \
    if (wanted & (bit) && (granted & (needs)) == (needs))                                                    \
        granted |= (bit);
#include "hypercalls.def"
    return granted;
}
