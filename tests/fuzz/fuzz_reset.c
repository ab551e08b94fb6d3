/*
 * Guest memory that is reset for another run, under libFuzzer (bindings/core/guest_reset.c).
 *
 * The input is u8 how (1: the kernel is not asked for written pages), u8 segments and for each of
 * them u8 pages, u8 rights; then steps of u8 what, u16 page, u8 value: a page is written or read,
 * or all memory is reset.
 *
 * After a reset, memory equals a new mapping of the template, byte by byte. Read-only pages are
 * still not writable, and the template has not changed.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "image_memory.h"
#include "must.h"

#define PAGE           4096u
#define M              0x400000u
#define TEMPLATE_BYTES 0x140000u /* an image of 64 pages; zeroes follow it */
#define FIRST          0x100u    /* first page of the image */
#define PAGES          (M / PAGE)
#define STEPS_MAX      48u

static int template_fd;
static uint8_t *template, *fresh;

static void set_up(void)
{
    template_fd = memfd_create("template", 0);
    MUST(template_fd >= 0 && ftruncate(template_fd, TEMPLATE_BYTES) == 0);
    template = mmap(NULL, TEMPLATE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, template_fd, 0);
    fresh = mmap(NULL, M, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(template != MAP_FAILED && fresh != MAP_FAILED);
    for (uint32_t i = 0; i < TEMPLATE_BYTES; i += 64)
        template[i] = fresh[i] = (uint8_t)(i * 2654435761u >> 24);
}

/* Whether the host may write there. The kernel is asked: it returns EFAULT if not. */
static bool is_writable(const uint8_t *at)
{
    static int zeroes = -1;
    if (zeroes < 0)
        zeroes = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    return read(zeroes, (void *)(uintptr_t)at, 1) == 1;
}

static bool may_write(const struct elf_image *image, uint32_t page)
{
    for (uint32_t i = 0; i < image->segment_count; i++)
        if (page >= image->segments[i].start / PAGE && page < image->segments[i].end / PAGE)
            return image->segments[i].flags & SEGMENT_WRITE;
    return true;
}

static bool may_read(const struct elf_image *image, uint32_t page)
{
    for (uint32_t i = 0; i < image->segment_count; i++)
        if (page >= image->segments[i].start / PAGE && page < image->segments[i].end / PAGE)
            return image->segments[i].flags;
    return true;
}

static void check_fresh(const struct guest_memory *memory, const struct elf_image *image,
                        uint32_t touched_end)
{
    for (uint32_t page = FIRST; page < touched_end; page++)
        if (may_read(image, page))
            MUST(memcmp(memory->hva + page * PAGE, fresh + page * PAGE, PAGE) == 0);
    MUST(memcmp(template + FIRST * PAGE, fresh + FIRST * PAGE, TEMPLATE_BYTES - FIRST * PAGE) == 0);
    for (uint32_t i = 0; i < image->segment_count; i++) {
        const uint8_t *at = memory->hva + image->segments[i].start;
        if (!(image->segments[i].flags & SEGMENT_WRITE))
            MUST(!is_writable(at) && !is_writable(memory->hva + image->segments[i].end - 1));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint32_t rights[] = {0, SEGMENT_READ, SEGMENT_READ | SEGMENT_WRITE,
                                      SEGMENT_READ | SEGMENT_EXEC, SEGMENT_WRITE};
    static struct elf_image image;
    struct guest_memory memory = {0};
    if (!template)
        set_up();
    if (size < 2)
        return 0;
    const bool unasked = data[0] & 1;
    uint32_t count = data[1] % 9, page = FIRST, touched_end = FIRST + 0x60;
    data += 2;
    size -= 2;
    for (image.segment_count = 0; image.segment_count < count && size >= 2; data += 2, size -= 2) {
        struct elf_segment *segment = &image.segments[image.segment_count++];
        page += data[0] & 1; /* a gap */
        segment->start = page * PAGE;
        page += 1u + data[0] / 2 % 8u;
        segment->end = page * PAGE;
        segment->flags = rights[data[1] % 5];
    }
    image.kernel_end = image.bss_end = page * PAGE;
    MUST(image_memory_map(&memory, &image, template_fd, TEMPLATE_BYTES, M, M) == 0);
    MUST(guest_memory_keep(&memory, template_fd) == 0 && memory.pagemap_fd >= 0);
    const int pagemap = memory.pagemap_fd;
    if (unasked)
        memory.pagemap_fd = -1;
    for (unsigned i = 0; i < STEPS_MAX && size >= 4; i++, data += 4, size -= 4) {
        uint32_t first =
            (data[1] | (uint32_t)data[2] << 8) % (data[0] & 0x80 ? PAGES - FIRST : 0x60u) + FIRST;
        uint32_t run = data[0] & 0x40 ? data[3] : 1u;
        switch (data[0] % 4) {
        case 0:
        case 1: /* the guest writes one byte in each page of a run */
            for (uint32_t p = first; p < first + run && p < PAGES; p++) {
                if (may_write(&image, p))
                    memory.hva[p * PAGE + data[3] * 16u] = (uint8_t)(data[3] + 1);
                touched_end = p >= touched_end ? p + 1 : touched_end;
            }
            break;
        case 2:
            for (uint32_t p = first; p < first + run && p < PAGES; p++)
                if (may_read(&image, p))
                    (void)*(volatile uint8_t *)(memory.hva + p * PAGE);
            break;
        default:
            MUST(guest_memory_reset(&memory) == 0);
            check_fresh(&memory, &image, touched_end);
        }
    }
    MUST(guest_memory_reset(&memory) == 0);
    check_fresh(&memory, &image, touched_end);
    memory.pagemap_fd = pagemap;
    guest_memory_unmap(&memory);
    MUST(!memory.template && !memory.hva);
    return 0;
}
