/*
 * The code before and after main(), and the ABI note that every unikernel carries.
 */
#include "kernel.h"

/* guest.ld: the functions that the compiler wants called before main() and after it. */
typedef void (*procedure)(void);
extern const procedure guest_constructors[], guest_constructors_end[];
extern const procedure guest_destructors[], guest_destructors_end[];

/*
 * guest.ld: each entry names a word, and the function that returns the value for that word (psABI,
 * R_X86_64_IRELATIVE).
 */
struct ifunc {
    uintptr_t *word;
    uint64_t type;
    uintptr_t (*resolve)(void);
};
extern const struct ifunc guest_ifuncs[], guest_ifuncs_end[];

TENDER_ABI_NOTE;

/* The section .comment, which is not loaded, says which library a unikernel has: `tender audit` reads it. */
#ifdef TENDER_VERSION
__asm__(".ident \"Tender guest library " TENDER_VERSION "\"");
#endif

/* guest.ld makes it the PT_INTERP. A host kernel that tries to execute the file finds no such program. */
__attribute__((section(".interp.tender"), used)) static const char interpreter[] = "/nonexistent/tender/";

/* The linker defines it: the header of the ELF file, which guest.ld loads with the text. */
extern const Elf64_Ehdr __ehdr_start;

const Elf64_Phdr *program_headers(uint16_t *count)
{
    *count = __ehdr_start.e_phnum;
    return (const Elf64_Phdr *)((uintptr_t)&__ehdr_start + __ehdr_start.e_phoff);
}

static uintptr_t image_end(void)
{
    uint16_t count;
    const Elf64_Phdr *header = program_headers(&count);
    uintptr_t end = 0;
    for (uint16_t i = 0; i < count; i++) {
        uintptr_t segment_end = header[i].p_vaddr + header[i].p_memsz;
        if (header[i].p_type == PT_LOAD && segment_end > end) {
            end = segment_end;
        }
    }
    return end;
}

static void resolve_ifuncs(void)
{
    for (const struct ifunc *ifunc = guest_ifuncs; ifunc < guest_ifuncs_end; ifunc++) {
        *ifunc->word = ifunc->resolve();
    }
}

static void call_constructors(void)
{
    for (const procedure *next = guest_constructors; next < guest_constructors_end; next++) {
        (*next)();
    }
}

static void call_destructors(void)
{
    for (const procedure *next = guest_destructors_end; next > guest_destructors;) {
        (*--next)();
    }
}

_Noreturn void guest_start(const struct hvt_boot_info *boot)
{
    trap_init(); /* first, so that every later fault is reported */
    gate_init();
    clock_init(boot->cpu_cycle_freq);
    manifest_init((const struct mft *)(uintptr_t)boot->mft);

    uintptr_t heap_from = (image_end() + 15) & ~(uintptr_t)15;
    uintptr_t heap_to = boot->mem_size > GUEST_STACK_BYTES ? boot->mem_size - GUEST_STACK_BYTES : 0;
    if (heap_to < heap_from + HVT_PAGE_BYTES) {
        panic("start: %lu bytes of memory do not hold an image that ends at %#lx and a stack of %u",
              boot->mem_size, heap_from, (unsigned)GUEST_STACK_BYTES);
    }
    memory_init(heap_from, heap_to, boot->mem_size);
    thread_init();

    char **argv;
    int argc = cmdline_init((const char *)(uintptr_t)boot->cmdline, &argv);
    resolve_ifuncs();
    call_constructors();
    int status = main(argc, argv);
    call_destructors();
    guest_exit(status);
}

_Noreturn void guest_exit(int status)
{
    if (net_queues_flush) {
        net_queues_flush();
    }
    struct hvt_halt halt = {.cookie = 0, .exit_status = status};
    for (;;) {
        gate_halt(&halt);
    }
}
