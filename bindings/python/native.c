/* The functions that Python may call. Each is a thin wrapper; the work is done in the other directories. */
#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>

#include "console.h"
#include "device.h"
#include "device_words.h"
#include "exit_report.h"
#include "hypercall.h"
#include "kvm_ops.h"
#include "lifecycle.h"
#include "owner.h"
#include "start_state.h"
#include "tsc.h"

int tn_ioctl_int(int fd, unsigned long request, unsigned long argument)
{
    int answer = ioctl(fd, request, argument);
    return answer < 0 ? -errno : answer;
}

uint64_t tn_tsc(void)
{
    return __builtin_ia32_rdtsc();
}

int tn_elf_parse_fd(int fd, struct elf_image *image, struct elf_error *error)
{
    struct byte_source source = byte_source_file(fd);
    return elf_image_parse(&source, image, error);
}

int tn_elf_parse_bytes(const void *bytes, size_t size, struct elf_image *image, struct elf_error *error)
{
    struct byte_source source = byte_source_memory(bytes, size);
    return elf_image_parse(&source, image, error);
}

int tn_elf_query_abi_fd(int fd, struct elf_image *image, struct elf_error *error)
{
    struct byte_source source = byte_source_file(fd);
    return elf_image_query_abi(&source, image, error);
}

int tn_elf_query_manifest_fd(int fd, struct elf_image *image, struct elf_error *error)
{
    struct byte_source source = byte_source_file(fd);
    return elf_image_query_manifest(&source, image, error);
}

/* Returns 0; -errno; or 1 with *error filled. */
static int load(struct image_handle *handle, const struct elf_image *image, struct byte_source *source,
                struct elf_error *error)
{
    int fd;
    int refused = owned_templates_make(handle, start_state_template_bytes(image), &fd);
    if (refused)
        return refused;
    return start_state_load_segments(image, source, fd, error) < 0;
}

int tn_image_load_fd(struct image_handle *handle, const struct elf_image *image, int fd,
                     struct elf_error *error)
{
    struct byte_source source = byte_source_file(fd);
    return load(handle, image, &source, error);
}

int tn_image_load_bytes(struct image_handle *handle, const struct elf_image *image, const void *bytes,
                        size_t size, struct elf_error *error)
{
    struct byte_source source = byte_source_memory(bytes, size);
    return load(handle, image, &source, error);
}

const char *tn_machine_name(uint32_t index)
{
    uint32_t count = 0;
    while (machines[count])
        count++;
    return index < count ? machines[index]->name : NULL;
}

const char *tn_machine_choose(struct machine_choice *choice, const char *backend, struct machine_error *error)
{
    const struct machine_ops *ops = machine_choose(choice, machine_by_name(backend), error);
    return ops ? ops->name : NULL;
}

int tn_ring_mode(const struct elf_image *image, uint64_t mem_bytes, int wanted, const char *backend)
{
    const struct machine_ops *expected = machine_expected(machine_by_name(backend));
    return (int)machine_ring_mode(expected, image, mem_bytes, (uint32_t)wanted);
}

static int keep(int fd, struct descriptor *into)
{
    if (fd >= 0)
        into->fd = fd;
    return fd < 0 ? fd : 0;
}

int tn_device_open(struct device_settings *settings, const struct elf_image *image, struct mft_entry *entry,
                   struct device_error *error, struct descriptor *into)
{
    struct device_guest guest;
    if (image)
        guest = (struct device_guest){&image->manifest, image->extensions, RING_NONE};
    return keep(device_open(settings, image ? &guest : NULL, entry, error), into);
}

int tn_device_configure(uint32_t type, struct device_settings *settings, const char *option,
                        const char *value)
{
    return device_configure(type, settings, option, value, false);
}

int tn_file_open(const char *path, int use, struct device_error *error, struct descriptor *into)
{
    return keep(file_open(path, (enum file_use)use, error), into);
}

int tn_exit_report_fill(const struct vm_event *event, const char *machine, int over_time, int told,
                        struct exit_report *report)
{
    const struct machine_ops *ops = machine_by_name(machine);
    if (!ops)
        return -EINVAL;
    exit_report_fill(event, ops->words, over_time != 0, (enum told)told, report);
    return 0;
}

const char *tn_isolation_cure(uint32_t index, const char *machine, int told)
{
    const struct machine_ops *ops = machine_by_name(machine);
    return ops ? isolation_cure(index, ops->words, (enum told)told) : "";
}
