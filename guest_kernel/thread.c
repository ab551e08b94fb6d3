/*
 * Thread-local storage of the only thread: `__thread` variables, and the canary of
 * -fstack-protector.
 *
 *     | .tdata, .tbss | self | ... | canary |
 *                     ^ FS base    FS base + 0x28
 *
 * The layout is variant II of the psABI: the variables end at the FS base, and the word at the FS
 * base holds its own address. A unikernel that uses neither variables nor canary leaves the FS base
 * at 0, because writing it costs one signal in the sandbox.
 */
#include "kernel.h"

#define MSR_FS_BASE 0xc0000100

struct thread {
    struct thread *self;
    uint64_t unused[4];
    uint64_t canary;
};
_Static_assert(offsetof(struct thread, canary) == 0x28, "where GCC and clang look for it");

static const Elf64_Phdr *storage_header(void)
{
    uint16_t count;
    const Elf64_Phdr *header = program_headers(&count);
    for (uint16_t i = 0; i < count; i++) {
        if (header[i].p_type == PT_TLS) {
            return &header[i];
        }
    }
    return NULL;
}

static void fs_base_write(const void *base)
{
    uint64_t value = (uintptr_t)base;
    __asm__ volatile("wrmsr"
                     :
                     : "c"(MSR_FS_BASE), "a"((uint32_t)value), "d"((uint32_t)(value >> 32))
                     : "memory");
}

/*
 * The canary detects an accidental overflow. It does not protect against an attacker that can read
 * memory. It is hard to predict, because the low bits of the counter are. Its lowest byte is 0, so
 * that a string cannot contain the canary.
 */
static uint64_t canary_new(void)
{
    uint64_t canary = clock_wall() ^ (__builtin_ia32_rdtsc() * 0x9e3779b97f4a7c15u);
    return canary & ~(uint64_t)0xff;
}

void thread_init(void)
{
    const Elf64_Phdr *storage = storage_header();
    const size_t bytes = storage ? storage->p_memsz : 0;
    if (!bytes && !__stack_chk_fail) {
        return;
    }
    const size_t align = bytes && storage->p_align > sizeof(uint64_t) ? storage->p_align : sizeof(uint64_t);
    /*
     * Both ends are aligned: the start of the block, where the variables begin, and its end, the FS
     * base.
     */
    const size_t rounded = (bytes + align - 1) & ~(align - 1);
    uint8_t *memory = guest_calloc(1, rounded + align + sizeof(struct thread));
    if (!memory) {
        panic("start: no memory for %lu bytes of thread-local variables", bytes);
    }
    const uintptr_t begin = ((uintptr_t)memory + align - 1) & ~(uintptr_t)(align - 1);
    struct thread *thread = (struct thread *)(begin + rounded);
    if (bytes) {
        memcpy((uint8_t *)thread - rounded, (const void *)storage->p_vaddr, storage->p_filesz);
    }
    thread->self = thread;
    thread->canary = canary_new();
    fs_base_write(thread);
}
