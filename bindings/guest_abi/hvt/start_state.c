/*
 * Memory and registers before the guest's first instruction; start_state.h has the picture.
 *
 * The rule: every byte that is written here lies below HVT_GUEST_MIN_GPA (tables, gate page, boot
 * info) or inside a segment that elf_image_parse() accepted.
 */
#define _POSIX_C_SOURCE 200809L

#include "start_state.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "hypercall.h"
#include "page_tables.h"

_Static_assert(HVT_PT_GPA + HVT_PAGE_BYTES <= HVT_BOOT_INFO_GPA, "tables end before the boot info");
_Static_assert(HVT_BOOT_INFO_GPA + sizeof(struct hvt_boot_info) + sizeof(struct mft) + HVT_CMDLINE_BYTES <=
                   HVT_GUEST_MIN_GPA,
               "boot info, manifest and command line end below the lowest load address");

static uint64_t round_up_to_page(uint64_t bytes)
{
    return (bytes + HVT_PAGE_BYTES - 1) & ~(uint64_t)(HVT_PAGE_BYTES - 1);
}

/* Intel SDM volume 3, 3.4.5.1 and 3.5 */
#define CODE_TYPE 9
#define DATA_TYPE 3
#define TSS_TYPE  11

static struct cpu_segment flat(uint16_t selector, uint8_t type, uint8_t is_long)
{
    return (struct cpu_segment){
        .limit = UINT32_MAX,
        .selector = selector,
        .type = type,
        .present = 1,
        .db = !is_long,
        .s = 1,
        .l = is_long,
        .g = 1,
    };
}

/* Long mode with paging, flat segments, no IDT, no local APIC: section 7 of the hvt contract as values. */
void start_state_registers(gpa_t entry, uint64_t mem_bytes, struct cpu_state *state)
{
    const struct cpu_segment data = flat(HVT_SELECTOR_DS, DATA_TYPE, 0);
    state->system = (struct cpu_system){
        .segment = {data, flat(HVT_SELECTOR_CS, CODE_TYPE, 1), data, data, data, data},
        .tr = {.type = TSS_TYPE, .present = 1},
        .ldtr = {.unusable = 1},
        .gdtr = {HVT_GDT_GPA, HVT_GDT_LIMIT},
        .cr0 = HVT_CR0,
        .cr3 = HVT_PML4_GPA,
        .cr4 = HVT_CR4,
        .efer = HVT_EFER,
        .apic_base = 0, /* no local APIC: all addresses up to 4 GiB are memory */
    };
    state->general = (struct cpu_general){
        .gpr = {[GPR_RSP] = mem_bytes - HVT_STACK_OFFSET, [GPR_RDI] = HVT_BOOT_INFO_GPA},
        .rip = entry,
        .rflags = HVT_RFLAGS,
    };
    state->known = CPU_GENERAL | CPU_SYSTEM;
}

uint64_t start_state_template_bytes(const struct elf_image *image)
{
    uint64_t bytes = round_up_to_page(image->kernel_end);
    return bytes < HVT_GUEST_MIN_GPA ? HVT_GUEST_MIN_GPA : bytes;
}

/*
 * The gate page of a backend where `out` exits from the guest. Slot N is
 *
 *     89 f8             mov %edi, %eax
 *     ba NN 05 00 00    mov $0x5NN, %edx
 *     ef                out %eax, (%dx)
 *     c3                ret
 *
 * and all other bytes, up to the backend's part, are int3: a guest that calls anything but a slot
 * gets a trap.
 */
static void write_slot(uint8_t *low, uint32_t number)
{
    static const uint8_t code[] = {0x89, 0xf8, 0xba, 0, 0, 0, 0, 0xef, 0xc3};
    enum { PORT_AT = 3 };

    _Static_assert(sizeof code <= TENDER_GATE_SLOT_BYTES, "a slot holds the code");
    const uint32_t port = HVT_PORT_BASE + number;
    uint8_t *slot = low + TENDER_GATE_GPA + (size_t)number * TENDER_GATE_SLOT_BYTES;
    memcpy(slot, code, sizeof code);
    memcpy(slot + PORT_AT, &port, sizeof port);
}

static void write_gate(uint8_t *low, uint32_t extensions)
{
    memset(low + TENDER_GATE_GPA, 0xcc, TENDER_EXTENSION_GPA - TENDER_GATE_GPA);
#define HYPERCALL(number, name, structure, access, feature, device)                                          \
    if ((extensions & (feature)) == (feature))                                                               \
        write_slot(low, number);
#include "hypercalls.def"
}

/* An image that asks for no feature finds zeros, as under a tender without extensions. */
void start_state_write_extension(uint8_t *low, uint32_t extensions)
{
    const struct tender_extension block = {
        .magic = TENDER_EXTENSION_MAGIC,
        .version = TENDER_EXTENSION_VERSION,
        .features = extensions,
        .gate = TENDER_GATE_GPA,
    };

    assert(extensions == features_granted(extensions));
    if ((extensions & TENDER_FEATURE_GATE) == 0)
        return;
    memcpy(low + TENDER_EXTENSION_GPA, &block, sizeof block);
    write_gate(low, extensions);
}

void start_state_write_tables(uint8_t *low, uint64_t mapped_bytes, uint32_t extensions)
{
    write_page_tables(low, mapped_bytes);
    start_state_write_extension(low, extensions);
}

static __attribute__((format(printf, 4, 5))) int load_failed(struct elf_error *error, uint64_t offset,
                                                             int os_error, const char *format, ...)
{
    va_list arguments;

    error->code = ELF_BAD_FILE;
    error->os_error = os_error;
    error->offset = offset;
    va_start(arguments, format);
    (void)vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    return -1;
}

/* Reads bytes [from, to) of the file into the segment that begins at `memory`. */
static int read_piece(const struct elf_segment *s, const struct byte_source *source, uint64_t from,
                      uint64_t to, uint8_t *memory, struct elf_error *error)
{
    const uint64_t before = from - s->file_offset;
    int64_t got = source->read_at(source, from, memory + before, (size_t)(to - from));
    if (got < 0)
        return load_failed(error, s->file_offset, (int)-got, "phdr[%u] segment could not be read", s->index);
    if ((uint64_t)got != to - from)
        return load_failed(error, s->file_offset, 0,
                           "phdr[%u] host file segment mismatched (%llu != %llu (p_filesz))", s->index,
                           (unsigned long long)(before + (uint64_t)got), (unsigned long long)s->file_bytes);
    return 0;
}

/*
 * Reads the segment's bytes directly to the place where the guest finds them. The memory around
 * them stays zero. A hole in a large segment is not read: it takes no space on the disk, so it must
 * take no memory. The last byte is always read, because that detects a file that became shorter.
 */
static int read_segment(const struct elf_segment *s, const struct byte_source *source, uint8_t *memory,
                        struct elf_error *error)
{
    const uint64_t end = s->file_offset + s->file_bytes; /* no overflow: the parser has read the last byte */
    uint64_t start, stop;

    if (s->file_bytes < START_STATE_SPARSE_MIN || !source->data_in)
        return read_piece(s, source, s->file_offset, end, memory, error);
    for (uint64_t at = s->file_offset; at < end && source->data_in(source, at, end, &start, &stop); at = stop)
        if (read_piece(s, source, start, stop, memory, error) < 0)
            return -1;
    return read_piece(s, source, end - 1, end, memory, error);
}

bool start_state_is_whole(const struct elf_segment *s, const struct byte_source *source)
{
    const uint64_t end = s->file_offset + s->file_bytes;
    uint64_t start, stop;

    if (s->file_bytes < START_STATE_SPARSE_MIN || !source->data_in)
        return true;
    return source->data_in(source, s->file_offset, end, &start, &stop) && start == s->file_offset &&
           stop == end;
}

int start_state_load_segments_at(const struct elf_image *image, const struct byte_source *source,
                                 uint8_t *memory, struct elf_error *error)
{
    memset(error, 0, sizeof *error);
    for (uint32_t i = 0; i < image->segment_count; i++)
        if (read_segment(&image->segments[i], source, memory + image->segments[i].vaddr, error) < 0)
            return -1;
    return 0;
}

static int load_segment(const struct elf_segment *s, const struct byte_source *source, int template_fd,
                        struct elf_error *error)
{
    size_t bytes = (size_t)(round_up_to_page(s->vaddr + s->file_bytes) - s->start);
    uint8_t *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, template_fd, (off_t)s->start);
    if (pages == MAP_FAILED)
        return load_failed(error, s->file_offset, errno, "phdr[%u] template could not be mapped", s->index);
    int result = read_segment(s, source, pages + (s->vaddr - s->start), error);
    (void)munmap(pages, bytes);
    return result;
}

int start_state_load_segments(const struct elf_image *image, const struct byte_source *source,
                              int template_fd, struct elf_error *error)
{
    struct stat status;

    memset(error, 0, sizeof *error);
    /*
     * An access to a mapping past the end of its file is a SIGBUS, so refuse a template that is too
     * small.
     */
    if (fstat(template_fd, &status) < 0)
        return load_failed(error, 0, errno, "template is not a file");
    if (status.st_size < 0 || (uint64_t)status.st_size < start_state_template_bytes(image))
        return load_failed(error, 0, 0,
                           "template of %lld bytes is smaller than the %llu that the image needs",
                           (long long)status.st_size, (unsigned long long)start_state_template_bytes(image));

    for (uint32_t i = 0; i < image->segment_count; i++)
        if (load_segment(&image->segments[i], source, template_fd, error) < 0)
            return -1;
    return 0;
}

void start_state_write_boot_info(uint8_t *boot_info, const struct elf_image *image,
                                 const struct mft *manifest, uint64_t mem_bytes, uint64_t tsc_hz,
                                 gpa_t net_ring, const char *cmdline, size_t cmdline_bytes)
{
    const gpa_t mft_gpa = HVT_BOOT_INFO_GPA + sizeof(struct hvt_boot_info);
    const gpa_t cmdline_gpa = mft_gpa + image->mft_bytes;
    const struct hvt_boot_info info = {
        .mem_size = mem_bytes,
        .kernel_end = image->kernel_end,
        .cpu_cycle_freq = tsc_hz,
        .cmdline = cmdline_gpa,
        .mft = mft_gpa,
        .host_features = net_ring ? HVT_FEATURE_NET_RING : 0,
        .net_ring = net_ring,
    };

    assert(manifest->entries >= 1 && manifest->entries <= MFT_MAX_ENTRIES);
    assert(image->mft_bytes == offsetof(struct mft, e) + manifest->entries * sizeof manifest->e[0]);
    assert(cmdline_bytes < HVT_CMDLINE_BYTES);

    memcpy(boot_info, &info, sizeof info);
    memcpy(boot_info + (mft_gpa - HVT_BOOT_INFO_GPA), manifest, offsetof(struct mft, e));
    for (uint32_t i = 0; i < manifest->entries; i++) {
        struct mft_entry entry = manifest->e[i];
        entry.host_private = 0; /* the guest must not see the host's descriptor numbers */
        memset(entry.padding, 0, sizeof entry.padding);
        memcpy(boot_info + (mft_gpa - HVT_BOOT_INFO_GPA) + offsetof(struct mft, e) + i * sizeof entry, &entry,
               sizeof entry);
    }
    /*
     * A pool writes a guest's own line over the pool's line, of which nothing may remain. No guest
     * has run since, so the pool's line still ends with its NUL. New memory has no line. No page
     * after the line is touched.
     */
    char *const line = (char *)boot_info + (cmdline_gpa - HVT_BOOT_INFO_GPA);
    const size_t before = strnlen(line, HVT_CMDLINE_BYTES);
    if (before > cmdline_bytes)
        memset(line + cmdline_bytes, 0, before - cmdline_bytes);
    memcpy(line, cmdline, cmdline_bytes);
    line[cmdline_bytes] = '\0';
}
