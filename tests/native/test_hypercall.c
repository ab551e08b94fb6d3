/*
 * The hypercall handlers and the decoding of exits, without KVM: each test fills a vm by hand, and
 * makes calls like the run loop. Prints one TAP line for each check and exits with 1 if one fails.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "console.h"
#include "devices.h"
#include "holds.h"
#include "run_kvm.h"
#include "runner.h"

#define M        0x400000u /* 4 MiB of guest memory */
#define TEXT     0x100000u
#define DATA     0x102000u
#define ARGS     0x200000u /* where the structures are */
#define BUFFER   0x210000u
#define DISK     65536u
#define NET      1
#define BLOCK    2
#define BLOCK_RO 3

static struct vm vm;
static int wire;    /* the other end of the network */
static int console; /* the other end of the console */

static void attach(uint32_t handle, struct vm_device device)
{
    vm.devices[handle] = device;
    vm.device_end = handle + 1;
    vm.count_of[MFT_NET_BASIC] += device.type == MFT_NET_BASIC;
    vm.count_of[MFT_BLOCK_BASIC] += device.type == MFT_BLOCK_BASIC;
}

static void set_up(void)
{
    int net[2], pipe_ends[2];
    memset(&vm, 0, sizeof vm);
    if (vm_init(&vm) < 0 || socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, net) < 0 ||
        pipe2(pipe_ends, O_NONBLOCK) < 0)
        abort();
    vm.memory.hva = mmap(NULL, M, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    vm.memory.bytes = M;
    vm.memory.ranges[0] = (struct guest_range){TEXT, DATA, SEGMENT_EXEC};
    vm.memory.ranges[1] = (struct guest_range){DATA, DATA + 0x1000, SEGMENT_READ};
    vm.memory.ranges[2] = (struct guest_range){DATA + 0x1000, DATA + 0x2000, 0};
    vm.memory.range_count = 3;
    guest_memory_ranges_set(&vm.memory);
    int disk = memfd_create("disk", 0);
    if (ftruncate(disk, DISK) < 0)
        abort();
    attach(NET, net_on(net[0], (struct net_device){.is_socket = true}));
    attach(BLOCK, disk_on(disk, (struct disk){.capacity = DISK}));
    attach(BLOCK_RO, disk_on(disk, (struct disk){.capacity = DISK, .read_only = true}));
    wire = net[1];
    console = pipe_ends[0];
    console_set(&vm, pipe_ends[1]);
    sigset_t saved;
    vm_enter(&vm, &saved);
}

static void tear_down(void)
{
    sigset_t empty;
    sigemptyset(&empty);
    vm_leave(&vm, &empty);
    for (uint32_t i = 0; i < vm.device_end; i++)
        if (vm.devices[i].fd >= 0 && i != BLOCK_RO)
            close(vm.devices[i].fd);
    close(vm.console.fd);
    close(wire);
    close(console);
    vm_release(&vm);
}

static void *at(gpa_t gpa)
{
    return vm.memory.hva + gpa;
}

static enum verdict call(uint32_t number, const void *args, size_t bytes)
{
    memcpy(at(ARGS), args, bytes);
    return hypercall(&vm, number, ARGS);
}

static bool refused(enum verdict verdict, gpa_t gpa, uint64_t len)
{
    const struct vm_event *event = &vm.shared->event;
    return verdict == EXIT && event->kind == EVENT_BAD_ACCESS && event->gpa == gpa && event->len == len;
}

static void test_ranges(void)
{
    struct guest_memory *m = &vm.memory;
    HOLDS(guest_memory_at(m, HVT_LOW_UNMAPPED_BYTES, 1, GUEST_READABLE) == m->hva + HVT_LOW_UNMAPPED_BYTES);
    /* The guest cannot read it either. */
    HOLDS(guest_memory_at(m, HVT_LOW_UNMAPPED_BYTES - 1, 2, GUEST_READABLE) == NULL);
    HOLDS(guest_memory_at(m, 0, 1, GUEST_READABLE) == NULL);
    HOLDS(guest_memory_at(m, 0, 0, GUEST_READABLE) != NULL); /* no bytes: any address is valid */
    HOLDS(guest_memory_at(m, 0, 0, GUEST_WRITABLE) != NULL);
    HOLDS(guest_memory_at(m, M - 1, 1, GUEST_READABLE) == m->hva + M - 1);
    HOLDS(guest_memory_at(m, HVT_LOW_UNMAPPED_BYTES, M - HVT_LOW_UNMAPPED_BYTES, GUEST_READABLE) ==
          NULL); /* the range contains a page without rights */
    HOLDS(guest_memory_at(m, M, 0, GUEST_READABLE) != NULL);
    HOLDS(guest_memory_at(m, M, 1, GUEST_READABLE) == NULL);
    HOLDS(guest_memory_at(m, M + 1, 0, GUEST_READABLE) == NULL);
    HOLDS(guest_memory_at(m, M - 1, 2, GUEST_READABLE) == NULL);
    HOLDS(guest_memory_at(m, ARGS, UINT64_MAX, GUEST_READABLE) == NULL);
    HOLDS(guest_memory_at(m, UINT64_MAX, 2, GUEST_READABLE) == NULL);
    HOLDS(guest_memory_at(m, UINT64_MAX, 0, GUEST_WRITABLE) == NULL);
    HOLDS(guest_memory_at(m, (gpa_t)1 << 63, 1, GUEST_READABLE) == NULL);
    HOLDS(guest_memory_at(m, HVT_BOOT_INFO_GPA, 100, GUEST_READABLE) != NULL);
    HOLDS(guest_memory_at(m, HVT_BOOT_INFO_GPA, 100, GUEST_WRITABLE) == NULL);
    HOLDS(guest_memory_at(m, HVT_GUEST_MIN_GPA - 1, 2, GUEST_WRITABLE) == NULL);
    HOLDS(guest_memory_at(m, TEXT, 16, GUEST_READABLE) != NULL); /* execute-only text is readable */
    HOLDS(guest_memory_at(m, TEXT, 16, GUEST_WRITABLE) == NULL);
    HOLDS(guest_memory_at(m, DATA, 16, GUEST_READABLE) != NULL);
    HOLDS(guest_memory_at(m, DATA, 16, GUEST_WRITABLE) == NULL);
    HOLDS(guest_memory_at(m, DATA + 0x1000, 1, GUEST_READABLE) == NULL);
    HOLDS(guest_memory_at(m, DATA + 0x0fff, 2, GUEST_READABLE) == NULL);
    HOLDS(guest_memory_at(m, DATA + 0x2000, 16, GUEST_WRITABLE) != NULL);
    HOLDS(guest_memory_at(m, DATA + 0x1fff, 2, GUEST_WRITABLE) == NULL);
}

/* The part that is open to the guest is computed once. That must not change any answer. */
static void test_the_open_part_allows_what_the_ranges_allow(void)
{
    struct guest_memory *m = &vm.memory;
    static const gpa_t edges[] = {0,
                                  HVT_LOW_UNMAPPED_BYTES,
                                  TEXT,
                                  DATA,
                                  DATA + 0x1000,
                                  DATA + 0x2000,
                                  ARGS,
                                  M - 0x1000,
                                  M,
                                  UINT32_MAX,
                                  UINT64_MAX / 2,
                                  UINT64_MAX};
    static const uint32_t flags[] = {0, SEGMENT_READ, SEGMENT_WRITE, SEGMENT_EXEC,
                                     SEGMENT_READ | SEGMENT_WRITE};
    enum { EDGES = sizeof edges / sizeof *edges, FLAGS = sizeof flags / sizeof *flags };
    uint64_t asked = 0, differ = 0, open = 0;
    for (uint32_t count = 0; count <= 3; count++)
        for (uint32_t last = 0; last < FLAGS; last++) {
            m->range_count = count;
            m->ranges[0].flags = flags[(last + 1) % FLAGS];
            m->ranges[count ? count - 1 : 0].flags = flags[last];
            guest_memory_ranges_set(m);
            for (int i = 0; i < EDGES * 3; i++)
                for (int j = 0; j < EDGES * 3; j++)
                    for (int write = 0; write < 2; write++) {
                        const gpa_t gpa = edges[i / 3] + (gpa_t)(i % 3) - 1,
                                    end = edges[j / 3] + (gpa_t)(j % 3) - 1;
                        const enum guest_access access = write ? GUEST_WRITABLE : GUEST_READABLE;
                        const void *in_ranges = guest_memory_in_ranges(m, gpa, end - gpa, access);
                        const void *at = guest_memory_at(m, gpa, end - gpa, access);
                        asked++;
                        open += gpa - m->open_start < m->open_bytes;
                        differ += end == gpa ? !at != !in_ranges : at != in_ranges;
                    }
        }
    HOLDS(differ == 0 && asked > 50000 && open > asked / 10);
}

static void test_dispatch(void)
{
    struct hvt_walltime walltime = {0};
    HOLDS(call(HVT_HYPERCALL_WALLTIME, &walltime, sizeof walltime) == CONTINUE);
    memcpy(&walltime, at(ARGS), sizeof walltime);
    HOLDS(walltime.nsecs / 1000000000u - (uint64_t)time(NULL) + 2 < 4);
    for (uint32_t number = 0; number < 300; number += 9) {
        HOLDS(hypercall(&vm, number, ARGS) == EXIT && vm.shared->event.kind == EVENT_BAD_HYPERCALL);
        HOLDS(vm.shared->event.number == number);
    }
    HOLDS(refused(hypercall(&vm, HVT_HYPERCALL_WALLTIME, M - 7), M - 7, 8));
    HOLDS(hypercall(&vm, HVT_HYPERCALL_WALLTIME, M - 8) == CONTINUE);
    HOLDS(refused(hypercall(&vm, HVT_HYPERCALL_WALLTIME, TEXT), TEXT, 8));
    HOLDS(refused(hypercall(&vm, HVT_HYPERCALL_WALLTIME, HVT_PML4_GPA), HVT_PML4_GPA, 8));
    uint32_t nets = vm.count_of[MFT_NET_BASIC], blocks = vm.count_of[MFT_BLOCK_BASIC];
    vm.count_of[MFT_NET_BASIC] = vm.count_of[MFT_BLOCK_BASIC] = 0;
    for (uint32_t number = HVT_HYPERCALL_BLOCK_WRITE; number <= HVT_HYPERCALL_NET_READ; number++)
        HOLDS(hypercall(&vm, number, ARGS) == EXIT && vm.shared->event.kind == EVENT_BAD_HYPERCALL);
    vm.count_of[MFT_NET_BASIC] = nets;
    vm.count_of[MFT_BLOCK_BASIC] = blocks;
}

static void test_console(void)
{
    char got[64] = {0};
    memcpy(at(BUFFER), "a\0b", 3);
    struct hvt_puts puts = {BUFFER, 3};
    HOLDS(call(HVT_HYPERCALL_PUTS, &puts, sizeof puts) == CONTINUE);
    HOLDS(read(console, got, sizeof got) == 3 && memcmp(got, "a\0b", 3) == 0);
    puts = (struct hvt_puts){M, 0};
    HOLDS(call(HVT_HYPERCALL_PUTS, &puts, sizeof puts) == CONTINUE);
    puts = (struct hvt_puts){M - 1, 2};
    HOLDS(refused(call(HVT_HYPERCALL_PUTS, &puts, sizeof puts), M - 1, 2));
    puts = (struct hvt_puts){BUFFER, UINT64_MAX};
    HOLDS(refused(call(HVT_HYPERCALL_PUTS, &puts, sizeof puts), BUFFER, UINT64_MAX));
    int fd = vm.console.fd;
    vm.console.fd = CONSOLE_PYTHON;
    puts = (struct hvt_puts){BUFFER, 3};
    HOLDS(call(HVT_HYPERCALL_PUTS, &puts, sizeof puts) == EXIT);
    HOLDS(vm.shared->event.kind == EVENT_CONSOLE && vm.shared->event.gpa == BUFFER &&
          vm.shared->event.len == 3);
    HOLDS(hypercall_resume(&vm) == CONTINUE);
    puts = (struct hvt_puts){BUFFER, (1u << 20) + 5}; /* passed in two pieces */
    HOLDS(call(HVT_HYPERCALL_PUTS, &puts, sizeof puts) == EXIT);
    HOLDS(vm.shared->event.gpa == BUFFER && vm.shared->event.len == 1u << 20);
    HOLDS(hypercall_resume(&vm) == EXIT);
    HOLDS(vm.shared->event.gpa == BUFFER + (1u << 20) && vm.shared->event.len == 5);
    HOLDS(hypercall_resume(&vm) == CONTINUE);
    vm.console.fd = fd;
}

static struct hvt_poll poll_for(uint64_t timeout_ns)
{
    struct hvt_poll poll_args = {timeout_ns, 99, 99};
    HOLDS(call(HVT_HYPERCALL_POLL, &poll_args, sizeof poll_args) == CONTINUE);
    memcpy(&poll_args, at(ARGS), sizeof poll_args);
    return poll_args;
}

static void test_net(void)
{
    struct hvt_poll poll_args = poll_for(0);
    HOLDS(poll_args.ready_set == 0 && poll_args.ret == 0);
    HOLDS(send(wire, "frame", 5, 0) == 5);
    poll_args = poll_for(UINT64_MAX);
    HOLDS(poll_args.ready_set == 1u << NET && poll_args.ret == 1);
    struct hvt_net_read in = {NET, BUFFER, 100, 77};
    HOLDS(call(HVT_HYPERCALL_NET_READ, &in, sizeof in) == CONTINUE);
    memcpy(&in, at(ARGS), sizeof in);
    HOLDS(in.ret == HVT_R_OK && in.len == 5 && memcmp(at(BUFFER), "frame", 5) == 0);
    in = (struct hvt_net_read){NET, BUFFER, 100, 77};
    HOLDS(call(HVT_HYPERCALL_NET_READ, &in, sizeof in) == CONTINUE);
    memcpy(&in, at(ARGS), sizeof in);
    HOLDS(in.ret == HVT_R_AGAIN && in.len == 100);
    in = (struct hvt_net_read){NET, DATA, 100, 77};
    HOLDS(refused(call(HVT_HYPERCALL_NET_READ, &in, sizeof in), DATA, 100));

    char got[16];
    struct hvt_net_write out = {NET, DATA, 4, 77}; /* read-only data may be sent */
    HOLDS(call(HVT_HYPERCALL_NET_WRITE, &out, sizeof out) == CONTINUE);
    HOLDS(recv(wire, got, sizeof got, 0) == 4);
    static const uint64_t no_net[] = {0, BLOCK, 4, 63, 64, UINT32_MAX, (1ull << 32) + NET, UINT64_MAX};
    for (size_t i = 0; i < sizeof no_net / sizeof *no_net; i++) {
        out = (struct hvt_net_write){no_net[i], BUFFER, 4, 77};
        HOLDS(call(HVT_HYPERCALL_NET_WRITE, &out, sizeof out) == CONTINUE);
        memcpy(&out, at(ARGS), sizeof out);
        HOLDS(out.ret == HVT_R_EINVAL);
    }
    out = (struct hvt_net_write){NET, BUFFER, 1u << 20, 77};
    HOLDS(call(HVT_HYPERCALL_NET_WRITE, &out, sizeof out) == CONTINUE);
    memcpy(&out, at(ARGS), sizeof out);
    HOLDS(out.ret == HVT_R_EINVAL);
    uint64_t drops = vm.shared->counters.net_tx_drops;
    /* Nobody reads: the queue fills, frames are dropped, the guest goes on. */
    for (int i = 0; i < 1000; i++) {
        out = (struct hvt_net_write){NET, BUFFER, 1500, 77};
        if (call(HVT_HYPERCALL_NET_WRITE, &out, sizeof out) != CONTINUE)
            break;
    }
    memcpy(&out, at(ARGS), sizeof out);
    HOLDS(out.ret == HVT_R_OK && vm.shared->counters.net_tx_drops > drops);
}

static int32_t block(uint32_t number, uint64_t handle, uint64_t offset, gpa_t data, uint64_t len)
{
    struct hvt_block_write args = {handle, offset, data, len, 77};
    if (call(number, &args, sizeof args) != CONTINUE)
        return -1;
    memcpy(&args, at(ARGS), sizeof args);
    return args.ret;
}

static void test_block(void)
{
    memset(at(BUFFER), 0x5a, 4096);
    HOLDS(block(HVT_HYPERCALL_BLOCK_WRITE, BLOCK, 0, BUFFER, 512) == HVT_R_OK);
    HOLDS(block(HVT_HYPERCALL_BLOCK_WRITE, BLOCK, DISK - 512, BUFFER, 512) == HVT_R_OK);
    HOLDS(block(HVT_HYPERCALL_BLOCK_WRITE, BLOCK, DISK - 511, BUFFER, 512) == HVT_R_EINVAL);
    HOLDS(block(HVT_HYPERCALL_BLOCK_WRITE, BLOCK, DISK, BUFFER, 0) == HVT_R_EINVAL);
    HOLDS(block(HVT_HYPERCALL_BLOCK_WRITE, BLOCK, UINT64_MAX - 100, BUFFER, 512) == HVT_R_EINVAL);
    HOLDS(block(HVT_HYPERCALL_BLOCK_WRITE, BLOCK, 0, BUFFER, 1ull << 63) == HVT_R_EINVAL);
    HOLDS(block(HVT_HYPERCALL_BLOCK_WRITE, NET, 0, BUFFER, 512) == HVT_R_EINVAL);
    HOLDS(block(HVT_HYPERCALL_BLOCK_WRITE, (1ull << 32) + BLOCK, 0, BUFFER, 512) == HVT_R_EINVAL);
    HOLDS(block(HVT_HYPERCALL_BLOCK_WRITE, BLOCK_RO, 0, BUFFER, 512) == HVT_R_EUNSPEC);
    HOLDS(vm.shared->counters.block_errors == 1);
    HOLDS(block(HVT_HYPERCALL_BLOCK_READ, BLOCK_RO, 0, BUFFER + 8192, 512) == HVT_R_OK);
    HOLDS(memcmp(at(BUFFER), at(BUFFER + 8192), 512) == 0);
    HOLDS(block(HVT_HYPERCALL_BLOCK_READ, BLOCK, 0, TEXT, 512) == -1);
    HOLDS(vm.shared->event.kind == EVENT_BAD_ACCESS);
    HOLDS(block(HVT_HYPERCALL_BLOCK_READ, BLOCK, 0, M - 511, 512) == -1);
    HOLDS(block(HVT_HYPERCALL_BLOCK_READ, BLOCK, 0, M - 512, 512) == HVT_R_OK);
    HOLDS(ftruncate(vm.devices[BLOCK].fd, 1024) == 0);
    HOLDS(block(HVT_HYPERCALL_BLOCK_READ, BLOCK, 512, BUFFER, 1024) == HVT_R_EUNSPEC);
}

static void test_halt(void)
{
    struct hvt_halt halt = {0, -3};
    HOLDS(call(HVT_HYPERCALL_HALT, &halt, sizeof halt) == EXIT);
    HOLDS(vm.shared->event.kind == EVENT_HALT && vm.shared->event.status == -3);
    HOLDS(!vm.shared->event.cookie_valid);
    struct hvt_trap_cookie trap = {.cr2 = 8, .rip = TEXT};
    memcpy(at(M - HVT_HALT_COOKIE_BYTES), &trap, sizeof trap);
    halt = (struct hvt_halt){M - HVT_HALT_COOKIE_BYTES, 255};
    HOLDS(call(HVT_HYPERCALL_HALT, &halt, sizeof halt) == EXIT);
    HOLDS(vm.shared->event.cookie_valid && vm.shared->event.trap.cr2 == 8);
    halt.cookie++;
    HOLDS(refused(call(HVT_HYPERCALL_HALT, &halt, sizeof halt), halt.cookie, HVT_HALT_COOKIE_BYTES));
}

static void test_interrupted_calls_resume(void)
{
    /* A signal that is pending under the caller's mask ends the wait. The call is resumed where it was. */
    struct hvt_poll poll_args = {50 * 1000000ull, 99, 99};
    raise(SIGUSR1); /* blocked here, ppoll lets it in; its handler must have run before the test goes on */
    while (recv(wire, at(BUFFER), 1500, 0) > 0)
        ;
    HOLDS(call(HVT_HYPERCALL_POLL, &poll_args, sizeof poll_args) == EXIT);
    HOLDS(vm.shared->event.kind == EVENT_INTERRUPTED);
    uint64_t deadline_ns = vm.resume.poll_deadline_ns;
    HOLDS(deadline_ns > monotonic_ns() - 1000000000u);
    HOLDS(hypercall_resume(&vm) == CONTINUE);
    HOLDS(monotonic_ns() >= deadline_ns);
    HOLDS(hypercall_resume(&vm) == CONTINUE); /* nothing left to resume */
}

/* The ring's worker may write a frame over the structure while its holder still handles the piece. */
static void test_a_resumed_call_is_the_one_that_was_made(void)
{
    const int fd = vm.console.fd;
    const struct hvt_puts puts = {BUFFER, (1u << 20) + 5}, other = {M - 16, 16};
    vm.console.fd = CONSOLE_PYTHON;
    HOLDS(call(HVT_HYPERCALL_PUTS, &puts, sizeof puts) == EXIT);
    memcpy(at(ARGS), &other, sizeof other);
    HOLDS(hypercall_resume(&vm) == EXIT);
    HOLDS(vm.shared->event.gpa == BUFFER + (1u << 20) && vm.shared->event.len == 5);
    HOLDS(hypercall_resume(&vm) == CONTINUE);
    vm.console.fd = fd;
}

static enum verdict exit_with(struct kvm_run *run)
{
    return kvm_exit_handle(&vm, run);
}

static void test_exits(void)
{
    static union {
        struct kvm_run run;
        uint8_t page[8192];
    } page;
    struct kvm_run *run = &page.run;
    const uint32_t gpa = ARGS;
    run->exit_reason = KVM_EXIT_IO;
    run->io.direction = KVM_EXIT_IO_OUT;
    run->io.size = 4;
    run->io.count = 1;
    run->io.port = HVT_PORT_BASE + HVT_HYPERCALL_WALLTIME;
    run->io.data_offset = 4096;
    memcpy(page.page + 4096, &gpa, sizeof gpa);
    HOLDS(exit_with(run) == CONTINUE); /* without registers */
    run->kvm_valid_regs = KVM_SYNC_X86_REGS;
    run->s.regs.regs.rax = 0xdeadbeef00000000u | gpa;
    HOLDS(exit_with(run) == CONTINUE);
    /* OUTS: the bytes that go out are not those in EAX. */
    for (unsigned bit = 0; bit < 32; bit++) {
        run->s.regs.regs.rax = gpa ^ 1u << bit;
        HOLDS(exit_with(run) == EXIT && vm.shared->event.kind == EVENT_BAD_PORT);
    }
    run->s.regs.regs.rax = gpa;
    for (unsigned size = 1; size <= 2; size++) {
        run->io.size = (uint8_t)size;
        HOLDS(exit_with(run) == EXIT && vm.shared->event.kind == EVENT_BAD_PORT);
    }
    run->io.size = 4;
    run->io.count = 2;
    HOLDS(exit_with(run) == EXIT && vm.shared->event.kind == EVENT_BAD_PORT);
    run->io.count = 1;
    run->io.direction = KVM_EXIT_IO_IN;
    HOLDS(exit_with(run) == EXIT && vm.shared->event.kind == EVENT_BAD_PORT);
    run->io.direction = KVM_EXIT_IO_OUT;
    static const uint16_t wrong[] = {0, 0x4ff, 0x509, 0x510, 0x511, 0x600, 0xffff};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        run->io.port = wrong[i];
        HOLDS(exit_with(run) == EXIT && vm.shared->event.port == wrong[i]);
    }
    run->exit_reason = KVM_EXIT_HLT;
    HOLDS(exit_with(run) == EXIT && vm.shared->event.kind == EVENT_UNHANDLED_EXIT);
    HOLDS(vm.shared->event.detail == KVM_EXIT_HLT);
    run->exit_reason = KVM_EXIT_FAIL_ENTRY;
    run->fail_entry.hardware_entry_failure_reason = 0x80000021;
    HOLDS(exit_with(run) == EXIT && vm.shared->event.kind == EVENT_ENTRY_FAILURE);
    HOLDS(vm.shared->event.detail == 0x80000021);
    run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
    run->internal.suberror = 3;
    HOLDS(exit_with(run) == EXIT && vm.shared->event.kind == EVENT_INTERNAL_ERROR);
    HOLDS(vm.shared->event.detail == 3);
}

/* A stop sets the backend's exit-at-once byte only while a thread is in the run, because the byte
 * is that thread's. */
static void test_a_stop_says_so_before_it_kicks(void)
{
    uint8_t word = 0;
    sigset_t saved;
    runner_of(&vm)->exit_at_once = &word;
    vm_stop(&vm);
    HOLDS(word == 1 && atomic_load(&vm.stop_requested));
    vm_leave(&vm, &vm.poll_mask);
    word = 0;
    vm_stop(&vm);
    HOLDS(word == 0);
    vm_enter(&vm, &saved);
    runner_of(&vm)->exit_at_once = NULL;
    vm_stop(&vm);
    HOLDS(word == 0);
}

static void nothing(int signal)
{
    (void)signal;
}

int main(void)
{
    signal(SIGUSR1, nothing);
    static void (*const tests[])(void) = {
        test_ranges,
        test_the_open_part_allows_what_the_ranges_allow,
        test_dispatch,
        test_console,
        test_net,
        test_block,
        test_halt,
        test_exits,
        test_interrupted_calls_resume,
        test_a_resumed_call_is_the_one_that_was_made,
        test_a_stop_says_so_before_it_kicks,
    };
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        set_up();
        tests[i]();
        tear_down();
    }
    return claims_end();
}
