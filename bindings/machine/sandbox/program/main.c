/*
 * tender-sandbox: one guest as ring-3 code of an ordinary process.
 *
 * spawn.c starts this program, or become.c executes it, with the descriptors of fds.h. It maps the guest's
 * memory at the guest's own addresses, installs handlers for its faults, gives up its rights, and enters the
 * guest. A hypercall arrives here through a patched call site or the gate (handle_hypercall), everything else
 * arrives as a signal (trap.c).
 *
 * It uses no libc, no thread-local storage and no vector register: these belong to the guest. The guest can
 * write to all of this program's data and jump to any of its code. The filter isolates the guest, not this
 * code.
 */
#include <elf.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "debug_note.h"
#include "device_ops.h"
#include "program.h"
#include "syscalls.h"
#include "trace.h"

#ifndef MADV_POPULATE_READ /* Linux 5.14; an older kernel refuses it, which does no harm */
#define MADV_POPULATE_READ  22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef HWCAP2_FSGSBASE
#define HWCAP2_FSGSBASE 2 /* asm/hwcap2.h */
#endif

DEBUG_SYMBOL struct vm the_vm;
struct auxiliary auxiliary;
static uint8_t *shared_memory;
static bool ends_at_once, alone;

/* A stop waits while this is set: until the guest is entered, and while the process that holds the VM reads
 * an event. */
static volatile bool reporting = true;
static volatile bool stop_waits;

/* A position-independent program without a dynamic linker: it applies its relocations itself. */
extern const Elf64_Ehdr __ehdr_start __attribute__((visibility("hidden")));
extern const Elf64_Dyn _DYNAMIC[] __attribute__((visibility("hidden")));

static void relocate(void)
{
    const uint8_t *base = (const uint8_t *)&__ehdr_start;
    const Elf64_Rela *rela = NULL;
    uint64_t bytes = 0;
    for (const Elf64_Dyn *d = _DYNAMIC; d->d_tag != DT_NULL; d++) {
        if (d->d_tag == DT_RELA)
            rela = (const void *)(base + d->d_un.d_ptr);
        else if (d->d_tag == DT_RELASZ)
            bytes = d->d_un.d_val;
    }
    for (uint64_t i = 0; i < bytes / sizeof *rela; i++) /* the build allows only R_X86_64_RELATIVE */
        *(uint64_t *)(uintptr_t)((uint64_t)base + rela[i].r_offset) =
            (uint64_t)base + (uint64_t)rela[i].r_addend;
    const Elf64_Phdr *phdr = (const void *)(base + __ehdr_start.e_phoff);
    for (unsigned i = 0; i < __ehdr_start.e_phnum; i++)
        if (phdr[i].p_type == PT_GNU_RELRO) {
            uint64_t start = ((uint64_t)base + phdr[i].p_vaddr) & ~(uint64_t)(HVT_PAGE_BYTES - 1);
            uint64_t end =
                ((uint64_t)base + phdr[i].p_vaddr + phdr[i].p_memsz) & ~(uint64_t)(HVT_PAGE_BYTES - 1);
            if (end > start)
                (void)system_call(start, end - start, PROT_READ, 0, 0, 0, SYS_mprotect);
        }
}

static void read_auxiliary(const uint64_t *stack)
{
    const uint64_t *word = stack + 1 + stack[0] + 1; /* argc, argv and its NULL */
    while (*word)
        word++; /* envp */
    for (word++; word[0] != AT_NULL; word += 2) {
        if (word[0] == AT_SYSINFO_EHDR)
            auxiliary.vdso = (const uint8_t *)(uintptr_t)word[1];
        else if (word[0] == AT_HWCAP2)
            auxiliary.fsgsbase = word[1] & HWCAP2_FSGSBASE;
    }
}

static bool send_word(char word)
{
    return system_call(SANDBOX_FD_CONTROL, (uint64_t)&word, 1, 0, 0, 0, SYS_write) == 1;
}

static bool send_ready(uint32_t layers)
{
    const struct sandbox_ready ready = {SANDBOX_READY, {(uint8_t)layers, (uint8_t)(layers >> 8)}};
    return system_call(SANDBOX_FD_CONTROL, (uint64_t)&ready, sizeof ready, 0, 0, 0, SYS_write) ==
           sizeof ready;
}

static bool wait_for_go(void)
{
    char word;
    int64_t got;
    do {
        got = system_call(SANDBOX_FD_CONTROL, (uint64_t)&word, 1, 0, 0, 0, SYS_read);
    } while (got == -4); /* EINTR: the kick, which the caller checks afterwards */
    return got == 1 && word == SANDBOX_GO;
}

static _Noreturn void leave(int status)
{
    for (;;)
        (void)system_call((uint64_t)status, 0, 0, 0, 0, 0, SYS_exit_group);
}

/* The memory stays until the process that holds the VM has read enough of it and kills this process, or ends
 * itself. If no process will read it, this process exits. */
DEBUG_SYMBOL __attribute__((noinline)) _Noreturn void end_run(void)
{
    if (alone)
        alone_end(0);
    reporting = true;
    if (!the_vm.shared->timeline.guest_exit)
        the_vm.shared->timeline.guest_exit = monotonic_ns();
    if (send_word(SANDBOX_EVENT) && !ends_at_once)
        (void)wait_for_go();
    leave(0);
}

static _Noreturn void end_stopped(void)
{
    reporting = true;
    the_vm.shared->event = (struct vm_event){.kind = EVENT_STOPPED};
    end_run();
}

/* This may also happen in the middle of a hypercall. For the guest, that is the same as a stop that came a
 * moment earlier. */
void stop_soon(void)
{
    if (!reporting)
        end_stopped();
    stop_waits = true;
}

bool is_entered(void)
{
    return !reporting;
}

/* Handles a stop that has waited. Later stops are handled immediately. */
static void allow_stops(void)
{
    reporting = false;
    if (stop_waits)
        end_stopped();
}

_Noreturn void end_failed(enum sandbox_step step, int64_t error)
{
    the_vm.shared->event =
        (struct vm_event){.kind = EVENT_SETUP_FAILED, .number = step, .os_error = (int32_t)-error};
    end_run();
}

/* The monitor takes the event and lets this process go on. */
static enum verdict ask_and_resume(void)
{
    if (alone) {
        alone_network();
        return hypercall_resume(&the_vm);
    }
    reporting = true;
    if (!send_word(SANDBOX_EVENT) || !wait_for_go())
        leave(0);
    allow_stops();
    return hypercall_resume(&the_vm);
}

static enum verdict give_console_piece(void)
{
    const struct vm_event *event = &the_vm.shared->event;
    uint64_t len = event->len < CONSOLE_PIECE_MAX ? event->len : CONSOLE_PIECE_MAX;
    memcpy(shared_memory + SANDBOX_CONSOLE_OFFSET, (const void *)(uintptr_t)event->gpa, len);
    return ask_and_resume();
}

static __attribute__((cold, noinline)) void handle_exit(uint64_t rip)
{
    enum verdict verdict = EXIT;
    while (verdict == EXIT) {
        struct vm_event *event = &the_vm.shared->event;
        if (event->kind == EVENT_CONSOLE) {
            verdict = give_console_piece();
        } else if (event->kind == EVENT_NETWORK) {
            verdict = ask_and_resume();
        } else if (event->kind == EVENT_INTERRUPTED) {
            if (!alone)
                end_stopped();                   /* no signal but the kick reaches this process */
            verdict = hypercall_resume(&the_vm); /* a sent fault signal: a stop never returns */
        } else {
            event->rip = rip;
            end_run();
        }
    }
}

void count_exit(void)
{
    struct vm_shared *shared = the_vm.shared;
    shared->counters.exits++;
    note_first_exit(shared);
}

/*
 * Called by entry_x86_64.S for a patched call site, or the gate. From there to the system call and back the
 * path is one function without a return, with a separate function for each of the most frequent calls: where
 * the compiler knows the number, little of the core's table is left.
 */
#if __has_attribute(function_return) /* clang before 15 lacks it, and a return there is slower */
#define RETURN_BY_JUMP __attribute__((function_return("thunk-extern")))
#else
#define RETURN_BY_JUMP
#endif
#define HOT_PATH __attribute__((flatten, noinline)) RETURN_BY_JUMP

/* The address of the `out`. The gate leaves its port in guest_rip; its address is then that of the `out` of
 * the slot under KVM, the eighth byte. */
static inline uint64_t rip_of_call(void)
{
    enum { OUT_AT = 7 };
    return guest_rip < HVT_GUEST_MIN_GPA
               ? TENDER_GATE_GPA + (guest_rip - HVT_PORT_BASE) * TENDER_GATE_SLOT_BYTES + OUT_AT
               : guest_rip - 1;
}

static __attribute__((cold, noinline)) void handle_exit_of_call(void)
{
    handle_exit(rip_of_call());
}

/* The first exit, and every hypercall while they are recorded. This too is one function, because after a
 * system call each return is slow. */
static HOT_PATH void handle_noted(uint32_t number, uint32_t gpa)
{
    const struct trace_caller caller = {.rip = rip_of_call(), .rsp = guest_rsp};
    count_exit();
    if (hypercall_out_traced(&the_vm, HVT_PORT_BASE + number, gpa, &caller) == EXIT)
        handle_exit_of_call();
}

static inline __attribute__((always_inline)) void handle_hypercall_out(uint32_t number, uint32_t gpa)
{
    if (__builtin_expect(exit_is_noted(the_vm.shared), 0)) {
        handle_noted(number, gpa);
        return;
    }
    the_vm.shared->counters.exits++;
    if (hypercall_out(&the_vm, HVT_PORT_BASE + number, gpa) == EXIT)
        handle_exit_of_call();
}

static HOT_PATH void handle_net_write(uint32_t gpa)
{
    handle_hypercall_out(HVT_HYPERCALL_NET_WRITE, gpa);
}

static HOT_PATH void handle_net_read(uint32_t gpa)
{
    handle_hypercall_out(HVT_HYPERCALL_NET_READ, gpa);
}

static HOT_PATH void handle_other(uint32_t number, uint32_t gpa)
{
    handle_hypercall_out(number, gpa);
}

void handle_hypercall(uint32_t number, uint32_t gpa);
RETURN_BY_JUMP void handle_hypercall(uint32_t number, uint32_t gpa)
{
    if (number == HVT_HYPERCALL_NET_WRITE)
        handle_net_write(gpa);
    else if (number == HVT_HYPERCALL_NET_READ)
        handle_net_read(gpa);
    else
        handle_other(number, gpa);
}

/* Called by trap.c for an `out` that arrived as a signal. */
void handle_out(uint32_t port, uint32_t gpa, uint64_t rip, uint64_t rsp)
{
    const struct trace_caller caller = {.rip = rip, .rsp = rsp};
    if (hypercall_out_traced(&the_vm, port, gpa, &caller) == EXIT)
        handle_exit(rip);
}

/* LAHF and SAHF: CPUID leaf 0x80000001, ECX bit 0. The first 64-bit processors have them only in 32-bit code.
 * All processors with FSGSBASE are newer and have them; asking would be slow, because a hypervisor traps
 * CPUID. */
static void choose_flags(void)
{
    uint32_t eax = 0x80000001, ebx, ecx, edx;
    if (auxiliary.fsgsbase)
        return;
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "=c"(ecx), "=d"(edx));
    if (!(ecx & 1))
        flags_by_popf = UINT32_MAX;
}

static void take_config(const struct sandbox_config *config)
{
    the_vm.shared = (struct vm_shared *)(void *)(shared_memory + SANDBOX_SHARED_OFFSET);
    the_vm.trace = (struct trace_record *)(void *)(shared_memory + SANDBOX_TRACE_OFFSET);
    the_vm.memory.hva = NULL; /* the guest's addresses are this process's own */
    the_vm.memory.bytes = config->mem_bytes;
    the_vm.memory.range_count = config->range_count;
    memcpy(the_vm.memory.ranges, config->ranges, config->range_count * sizeof config->ranges[0]);
    guest_memory_ranges_set(&the_vm.memory);
    the_vm.device_end = config->device_end;
    the_vm.extensions = config->extensions;
    for (uint32_t i = 0; i < config->device_end; i++) {
        const uint32_t type = config->devices[i].type;
        if (!type)
            continue;
        the_vm.devices[i] = config->devices[i];
        the_vm.devices[i].fd = sandbox_device_fd(type, i);
        the_vm.count_of[type]++;
    }
    devices_map(&the_vm, false);
    the_vm.console = config->console;
    if (the_vm.console.fd >= 0)
        the_vm.console.fd = SANDBOX_FD_CONSOLE;
    alone = config->alone.wanted;
    the_vm.stop_fd = alone ? -1 : SANDBOX_FD_STOP; /* ppoll() ignores -1 */
    ends_at_once = config->ends_at_once;
}

/* The kernel touches the page and may refuse, where a hostile image's entry or stack would be a fault of
 * ours. */
static void populate(gpa_t at, int how)
{
    (void)system_call(at & ~(gpa_t)(HVT_PAGE_BYTES - 1), HVT_PAGE_BYTES, (uint64_t)how, 0, 0, 0, SYS_madvise);
}

/* Brings in the pages that the guest's first instructions and its first hypercall touch, all together instead
 * of fault by fault. */
static void populate_first(gpa_t entry, gpa_t stack_top)
{
    populate(HVT_BOOT_INFO_GPA, MADV_POPULATE_READ);
    populate(TENDER_TRAMPOLINES_GPA, MADV_POPULATE_READ);
    populate(entry, MADV_POPULATE_READ);
    populate(stack_top - 1, MADV_POPULATE_WRITE);
    ((volatile uint8_t *)handler_stack_top)[-1] = 0;
}

/* Called by entry_x86_64.S: the program's first C function. */
_Noreturn void program_start(const uint64_t *stack);
_Noreturn void program_start(const uint64_t *stack)
{
    relocate();
    read_auxiliary(stack);
    clock_find(auxiliary.vdso);
    choose_flags();
    int64_t mapped =
        system_call(0, SANDBOX_VM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, SANDBOX_FD_VM, 0, SYS_mmap);
    if (mapped < 0)
        leave(71); /* EX_OSERR: there is no process to report it to */
    shared_memory = (uint8_t *)(uintptr_t)mapped;
    struct sandbox_config *config = (void *)(shared_memory + SANDBOX_CONFIG_OFFSET);
    take_config(config);
    if (alone)
        alone_begin(&config->alone);
    map_guest(config);
    traps_init(config->kick_signal, &config->alone);
    if (alone)
        alone_let_signals_in();
    const gpa_t entry = config->rip, stack_top = config->rsp, argument = config->rdi;
    populate_first(entry, stack_top);
    const uint32_t layers = confine(config);
    atomic_store_explicit(&config->prepared, 1, memory_order_release);
    if (alone)
        alone_refuse_missing(layers);
    else if (!send_ready(layers) || !wait_for_go())
        leave(0);
    the_vm.shared->timeline.first_run = monotonic_ns();
    __asm__ volatile("fninit");
    allow_stops();
    enter_guest(entry, stack_top, argument);
}

/* ---- for a debugger */

DEBUG_ADDRESS("the_vm", the_vm);
DEBUG_ADDRESS("end_run", end_run);
DEBUG_ADDRESS("program_start", __ehdr_start);
DEBUG_ADDRESS("program_end", _end);
DEBUG_NOTE(debug_facts_of_program)
{
    DEBUG_NUMBER("config", SANDBOX_CONFIG_OFFSET);
    DEBUG_NUMBER("config_rip", offsetof(struct sandbox_config, rip)); /* with rsp, rdi */
    DEBUG_NUMBER("trace", SANDBOX_TRACE_OFFSET);
    DEBUG_NUMBER("config_mem_bytes", offsetof(struct sandbox_config, mem_bytes));
    DEBUG_NUMBER("config_template_bytes", offsetof(struct sandbox_config, template_bytes));
    DEBUG_NUMBER("config_prepared", offsetof(struct sandbox_config, prepared));
    DEBUG_NUMBER("config_alone", offsetof(struct sandbox_config, alone.wanted));
    DEBUG_NUMBER("boot", SANDBOX_BOOT_OFFSET);
}
