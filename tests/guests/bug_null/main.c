/*
 * A planted bug for docs/debugging.md: sums up the readings of its sensors, which it finds by name. It ends
 * with a page fault.
 *
 *     bug_null.elf NAME...     a sum for each NAME of kitchen, cellar, roof
 */
#include <tender/guest.h>

TENDER_MANIFEST(0);

struct sensor {
    const char *name;
    unsigned readings[4];
    unsigned count;
};

static const struct sensor sensors[] = {
    {"kitchen", {21, 22, 22, 23}, 4},
    {"cellar", {12, 12, 11}, 3},
    {"roof", {31, 35}, 2},
};

static const struct sensor *sensor_find(const char *name)
{
    for (size_t i = 0; i < sizeof sensors / sizeof *sensors; i++)
        if (!strcmp(sensors[i].name, name))
            return &sensors[i];
    return NULL;
}

static inline __attribute__((always_inline)) unsigned sensor_sum(const struct sensor *sensor)
{
    unsigned sum = 0;
    for (unsigned i = 0; i < sensor->count; i++)
        sum += sensor->readings[i];
    return sum;
}

static __attribute__((noinline)) void report(const char *name)
{
    const struct sensor *sensor = sensor_find(name);
    printf("%s: %u\n", name, sensor_sum(sensor));
}

int main(int argc, char **argv)
{
    for (int i = 0; i < argc; i++)
        report(argv[i]);
    return 0;
}
