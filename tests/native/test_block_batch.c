/*
 * block_batch without KVM: what it serves, what it refuses, and how it is interrupted. Each test
 * fills a vm by hand, as in test_hypercall.c. Prints one TAP line for each check and exits with 1
 * if one fails.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "block.h"
#include "devices.h"
#include "holds.h"
#include "runner.h"

#define M           0x1000000u
#define TEXT        0x100000u
#define DATA        0x102000u
#define ARGS        0x200000u
#define REQUESTS    0x201000u
#define BUFFER      0x210000u
#define LONG_BUFFER 0x400000u
#define PAGE        4096u
#define DISK        (4u << 20)
#define NET         1
#define BLOCK       2
#define BLOCK_RO    3
#define NUMBER      TENDER_HYPERCALL_BLOCK_BATCH
#define PORT        (HVT_PORT_BASE + NUMBER)

static struct vm vm;
static sigset_t saved;

static void set_up(void)
{
    memset(&vm, 0, sizeof vm);
    if (vm_init(&vm) < 0)
        abort();
    vm.memory.hva = mmap(NULL, M, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    vm.memory.bytes = M;
    vm.memory.ranges[0] = (struct guest_range){TEXT, DATA, SEGMENT_EXEC};
    vm.memory.ranges[1] = (struct guest_range){DATA, DATA + PAGE, SEGMENT_READ};
    vm.memory.range_count = 2;
    guest_memory_ranges_set(&vm.memory);
    int disk = memfd_create("disk", 0), disk_ro = memfd_create("read-only", 0);
    if (ftruncate(disk, DISK) < 0 || ftruncate(disk_ro, DISK) < 0)
        abort();
    vm.devices[NET] = net_on(-1, (struct net_device){0});
    vm.devices[BLOCK] = disk_on(disk, (struct disk){.capacity = DISK});
    vm.devices[BLOCK_RO] = disk_on(disk_ro, (struct disk){.capacity = DISK, .read_only = true});
    vm.device_end = BLOCK_RO + 1;
    vm.count_of[MFT_NET_BASIC] = 1;
    vm.count_of[MFT_BLOCK_BASIC] = 2;
    vm.extensions = TENDER_FEATURE_GATE | TENDER_FEATURE_BLOCK_BATCH;
    vm_enter(&vm, &saved);
    disk_map_open(&disk_of(&vm.devices[BLOCK])->map, disk, DISK, false, UINT32_MAX,
                  &(uint64_t){DISK_MAPPED_BYTES_MAX});
}

static void tear_down(void)
{
    vm_leave(&vm, &saved);
    close(vm.devices[BLOCK].fd);
    close(vm.devices[BLOCK_RO].fd);
    vm_release(&vm);
}

static uint8_t *at(gpa_t gpa)
{
    return vm.memory.hva + gpa;
}

static struct tender_block_request request(uint32_t op, uint64_t offset, gpa_t data, uint64_t len)
{
    return (struct tender_block_request){op, 77, BLOCK, offset, data, len};
}

static struct tender_block_request read_to(uint64_t offset, gpa_t data, uint64_t len)
{
    return request(TENDER_BLOCK_READ, offset, data, len);
}

static struct tender_block_request write_from(uint64_t offset, gpa_t data, uint64_t len)
{
    return request(TENDER_BLOCK_WRITE, offset, data, len);
}

static void put_request(uint32_t index, struct tender_block_request r)
{
    memcpy(at(REQUESTS + index * sizeof r), &r, sizeof r);
}

static int32_t answer(uint32_t index)
{
    struct tender_block_request r;
    memcpy(&r, at(REQUESTS + index * sizeof r), sizeof r);
    return r.ret;
}

static enum verdict submit_at(gpa_t requests, uint32_t count)
{
    const struct tender_block_batch batch = {requests, count, 99, 99, 0};
    memcpy(at(ARGS), &batch, sizeof batch);
    return hypercall_out(&vm, PORT, ARGS);
}

static enum verdict submit(uint32_t count)
{
    return submit_at(REQUESTS, count);
}

static bool ends_with(uint32_t done, int32_t ret)
{
    struct tender_block_batch batch;
    memcpy(&batch, at(ARGS), sizeof batch);
    return batch.done == done && batch.ret == ret;
}

static bool ends_the_guest(enum verdict verdict, gpa_t gpa, uint64_t len)
{
    const struct vm_event *event = &vm.shared->event;
    return verdict == EXIT && event->kind == EVENT_BAD_ACCESS && event->number == NUMBER &&
           event->gpa == gpa && event->len == len;
}

static void test_requests_are_served_in_order_and_each_has_its_answer(void)
{
    memset(at(BUFFER), 'a', PAGE);
    memset(at(BUFFER + PAGE), 'b', PAGE);
    put_request(0, write_from(0, BUFFER, PAGE));
    put_request(1, read_to(0, BUFFER + 2 * PAGE, PAGE));
    put_request(2, write_from(0, BUFFER + PAGE, PAGE));
    put_request(3, read_to(0, BUFFER + 3 * PAGE, PAGE));
    put_request(4, read_to(DISK, BUFFER, PAGE)); /* past the end: the other requests are served */
    put_request(5, request(TENDER_BLOCK_FLUSH, UINT64_MAX, UINT64_MAX, UINT64_MAX));
    put_request(6, request(4, 0, BUFFER, PAGE));
    put_request(7, request(0, 0, BUFFER, PAGE));
    put_request(8, request(UINT32_MAX, 0, BUFFER, PAGE));
    put_request(9, read_to(PAGE, BUFFER, PAGE));
    HOLDS(submit(10) == CONTINUE && ends_with(10, HVT_R_OK));
    static const int32_t answers[] = {HVT_R_OK, HVT_R_OK,     HVT_R_OK,     HVT_R_OK,     HVT_R_EINVAL,
                                      HVT_R_OK, HVT_R_EINVAL, HVT_R_EINVAL, HVT_R_EINVAL, HVT_R_OK};
    for (uint32_t i = 0; i < 10; i++)
        HOLDS(answer(i) == answers[i]);
    HOLDS(at(BUFFER + 2 * PAGE)[0] == 'a' && at(BUFFER + 3 * PAGE)[PAGE - 1] == 'b');
    const struct vm_counters *counters = &vm.shared->counters;
    HOLDS(counters->block_batches == 1 && counters->block_flushes == 1);
    HOLDS(counters->block_reads == 3 && counters->block_writes == 2 && counters->block_errors == 0);
    HOLDS(counters->block_read_bytes == 3 * PAGE && counters->block_write_bytes == 2 * PAGE);
}

static void test_each_request_is_checked_as_if_it_came_alone(void)
{
    static const uint64_t no_disk[] = {0, NET, 4, 63, 64, UINT32_MAX, (1ull << 32) + BLOCK, UINT64_MAX};
    enum { NO_DISKS = sizeof no_disk / sizeof *no_disk };
    for (uint32_t op = TENDER_BLOCK_READ; op <= TENDER_BLOCK_FLUSH; op++) {
        for (uint32_t i = 0; i < NO_DISKS; i++) {
            struct tender_block_request r = request(op, 0, BUFFER, PAGE);
            r.handle = no_disk[i];
            put_request(i, r);
        }
        HOLDS(submit(NO_DISKS) == CONTINUE && ends_with(NO_DISKS, HVT_R_OK));
        for (uint32_t i = 0; i < NO_DISKS; i++)
            HOLDS(answer(i) == HVT_R_EINVAL);
    }
    put_request(0, write_from(0, BUFFER, 1ull << 63));
    put_request(1, write_from(UINT64_MAX - 100, BUFFER, 512));
    put_request(2, read_to(DISK - 511, BUFFER, 512));
    struct tender_block_request read_only = write_from(0, BUFFER, 512);
    read_only.handle = BLOCK_RO;
    put_request(3, read_only);
    read_only.op = TENDER_BLOCK_FLUSH; /* such a disk has nothing to flush */
    put_request(4, read_only);
    HOLDS(submit(5) == CONTINUE);
    HOLDS(answer(0) == HVT_R_EINVAL && answer(1) == HVT_R_EINVAL && answer(2) == HVT_R_EINVAL);
    HOLDS(answer(3) == HVT_R_EUNSPEC && answer(4) == HVT_R_OK);
    int fd = vm.devices[BLOCK].fd;
    vm.devices[BLOCK].fd = vm.stop_fd; /* a descriptor that cannot be flushed */
    put_request(0, request(TENDER_BLOCK_FLUSH, 0, 0, 0));
    HOLDS(submit(1) == CONTINUE && answer(0) == HVT_R_EUNSPEC);
    vm.devices[BLOCK].fd = fd;
}

static void test_an_address_that_is_not_the_guests_ends_it(void)
{
    static const struct {
        uint32_t op;
        gpa_t data;
        uint64_t len;
    } wild[] = {
        {TENDER_BLOCK_READ, M - 511, 512},      {TENDER_BLOCK_READ, TEXT, 512},
        {TENDER_BLOCK_READ, DATA, 512},         {TENDER_BLOCK_READ, HVT_PML4_GPA, 512},
        {TENDER_BLOCK_READ, UINT64_MAX, 2},     {TENDER_BLOCK_WRITE, M, 1},
        {TENDER_BLOCK_WRITE, HVT_GDT_GPA, 512},
    };
    for (size_t i = 0; i < sizeof wild / sizeof *wild; i++) {
        put_request(0, read_to(0, BUFFER, 512));
        put_request(1, request(wild[i].op, 0, wild[i].data, wild[i].len));
        put_request(2, read_to(0, BUFFER, 512));
        HOLDS(ends_the_guest(submit(3), wild[i].data, wild[i].len));
        HOLDS(answer(0) == HVT_R_OK && answer(1) == 77 && answer(2) == 77);
    }
    put_request(0, write_from(0, DATA, PAGE)); /* a write may read from read-only memory */
    put_request(1, write_from(0, TEXT, PAGE));
    HOLDS(submit(2) == CONTINUE && answer(0) == HVT_R_OK && answer(1) == HVT_R_OK);
}

static void test_false_counts_and_arrays(void)
{
    enum { SIZE = sizeof(struct tender_block_request) };
    static const uint32_t too_many[] = {TENDER_BLOCK_BATCH_MAX + 1, 1u << 31, UINT32_MAX,
                                        UINT32_MAX / SIZE + 2};
    put_request(0, read_to(0, BUFFER, 512));
    for (size_t i = 0; i < sizeof too_many / sizeof *too_many; i++)
        HOLDS(submit(too_many[i]) == CONTINUE && ends_with(0, HVT_R_EINVAL) && answer(0) == 77);
    HOLDS(submit_at(UINT64_MAX, TENDER_BLOCK_BATCH_MAX + 1) == CONTINUE && ends_with(0, HVT_R_EINVAL));
    HOLDS(submit(0) == CONTINUE && ends_with(0, HVT_R_OK));
    HOLDS(submit_at(M, 0) == CONTINUE && ends_with(0, HVT_R_OK));
    static const gpa_t wild[] = {
        M - 2 * SIZE + 1,  M, UINT64_MAX - SIZE, (1ull << 32) + REQUESTS, TEXT, DATA, DATA + PAGE - SIZE,
        HVT_BOOT_INFO_GPA, 0};
    for (size_t i = 0; i < sizeof wild / sizeof *wild; i++)
        HOLDS(ends_the_guest(submit_at(wild[i], 2), wild[i], 2 * SIZE));
    for (uint32_t i = 0; i < TENDER_BLOCK_BATCH_MAX; i++)
        put_request(i, read_to(i * PAGE, BUFFER, 512));
    HOLDS(submit(TENDER_BLOCK_BATCH_MAX) == CONTINUE && ends_with(TENDER_BLOCK_BATCH_MAX, HVT_R_OK));
    HOLDS(submit_at(M - SIZE, 1) == CONTINUE); /* up to the last byte of memory */
}

static void test_requests_that_change_while_they_are_served(void)
{
    /* The disk contains what a request reads over the array: the second request, and a third one
     * after the count. */
    struct tender_block_request on_disk[3] = {read_to(0, 0, 0), write_from(PAGE, BUFFER, 512),
                                              write_from(2 * PAGE, BUFFER, 512)};
    memset(at(BUFFER), 'c', 512);
    memcpy(at(BUFFER + PAGE), on_disk, sizeof on_disk);
    put_request(0, write_from(0, BUFFER + PAGE, 512));
    HOLDS(submit(1) == CONTINUE && answer(0) == HVT_R_OK);
    put_request(0, read_to(0, REQUESTS, 512));
    put_request(1, read_to(0, HVT_GDT_GPA, 512)); /* this request would end the guest */
    put_request(2, read_to(0, BUFFER, 512));
    HOLDS(submit(2) == CONTINUE && ends_with(2, HVT_R_OK));
    HOLDS(answer(0) == HVT_R_OK && answer(1) == HVT_R_OK && answer(2) == 77);
    HOLDS(vm.shared->counters.block_writes == 2);
    uint8_t got = 0;
    HOLDS(pread(vm.devices[BLOCK].fd, &got, 1, PAGE) == 1 && got == 'c');
    /* Reads over the batch's own structure, which is written at the end from the copy. */
    put_request(0, read_to(PAGE, ARGS, 512));
    HOLDS(submit(1) == CONTINUE && ends_with(1, HVT_R_OK));
    struct tender_block_batch batch;
    memcpy(&batch, at(ARGS), sizeof batch);
    HOLDS(batch.requests == REQUESTS && batch.count == 1);
}

static void test_a_guest_without_the_feature_cannot_make_it(void)
{
    put_request(0, read_to(0, BUFFER, 512));
    vm.extensions = TENDER_FEATURE_GATE;
    HOLDS(submit(1) == EXIT && vm.shared->event.kind == EVENT_BAD_PORT && vm.shared->event.port == PORT);
    HOLDS(hypercall(&vm, NUMBER, ARGS) == EXIT && vm.shared->event.kind == EVENT_BAD_HYPERCALL);
    vm.extensions |= TENDER_FEATURE_BLOCK_BATCH;
    for (uint32_t number = HVT_HYPERCALL_MAX; number < 300; number++)
        if (number != NUMBER)
            HOLDS(hypercall_out(&vm, HVT_PORT_BASE + number, ARGS) == EXIT &&
                  vm.shared->event.kind == EVENT_BAD_PORT);
    vm.count_of[MFT_BLOCK_BASIC] = 0;
    HOLDS(submit(1) == EXIT && vm.shared->event.kind == EVENT_BAD_HYPERCALL);
    HOLDS(vm.shared->event.number == NUMBER);
}

static unsigned handled;

static void on_signal(int signal)
{
    (void)signal;
    handled++;
}

static void put_long_batch(void)
{
    for (uint32_t i = 0; i < TENDER_BLOCK_BATCH_MAX; i++)
        put_request(i, write_from(0, BUFFER, 1u << 20));
}

static uint32_t answered(void)
{
    uint32_t count = 0;
    while (count < TENDER_BLOCK_BATCH_MAX && answer(count) == HVT_R_OK)
        count++;
    return count;
}

static void test_a_stop_is_obeyed_between_requests(void)
{
    put_long_batch();
    vm_stop(&vm);
    HOLDS(submit(TENDER_BLOCK_BATCH_MAX) == EXIT && vm.shared->event.kind == EVENT_STOPPED);
    HOLDS(answered() >= 1 && answered() < 4);
}

static void test_a_signal_interrupts_and_the_batch_goes_on_where_it_was(void)
{
    put_long_batch();
    put_request(0, request(TENDER_BLOCK_FLUSH, 0, 0, UINT64_MAX)); /* its length is not checked */
    /* Blocked here, unblocked where the call waits. */
    raise(SIGUSR1);
    HOLDS(submit(TENDER_BLOCK_BATCH_MAX) == EXIT && vm.shared->event.kind == EVENT_INTERRUPTED);
    HOLDS(handled == 1 && answered() == 1);
    raise(SIGUSR1);
    HOLDS(hypercall_resume(&vm) == EXIT && vm.shared->event.kind == EVENT_INTERRUPTED && handled == 2);
    const uint32_t so_far = answered();
    HOLDS(so_far > 1 && so_far < 5);
    HOLDS(hypercall_resume(&vm) == CONTINUE && ends_with(TENDER_BLOCK_BATCH_MAX, HVT_R_OK));
    HOLDS(answered() == TENDER_BLOCK_BATCH_MAX);
    HOLDS(vm.shared->counters.block_writes == TENDER_BLOCK_BATCH_MAX - 1); /* none is done twice */
    HOLDS(vm.shared->counters.block_batches == 1);
    HOLDS(hypercall_resume(&vm) == CONTINUE); /* nothing left to resume */
    put_request(0, read_to(0, BUFFER, 512));
    /* It starts from its first request. */
    HOLDS(submit(1) == CONTINUE && ends_with(1, HVT_R_OK) && answer(0) == HVT_R_OK);
}

static void test_a_batch_that_is_interrupted_goes_on_as_it_was_made(void)
{
    put_long_batch();
    raise(SIGUSR1);
    HOLDS(submit(TENDER_BLOCK_BATCH_MAX) == EXIT && vm.shared->event.kind == EVENT_INTERRUPTED);
    const struct tender_block_batch shorter = {REQUESTS, 0, 0, 0, 0};
    memcpy(at(ARGS), &shorter, sizeof shorter); /* like a frame that is read into the structure */
    HOLDS(hypercall_resume(&vm) == CONTINUE && ends_with(TENDER_BLOCK_BATCH_MAX, HVT_R_OK));
    HOLDS(answered() == TENDER_BLOCK_BATCH_MAX);
}

#define PIECE BLOCK_PIECE_BYTES
#define LONG  (3 * PIECE + 8)

static enum verdict transfer(uint32_t number, uint64_t handle, uint64_t offset, uint64_t len)
{
    const struct hvt_block_write call = {handle, offset, LONG_BUFFER, len, 99};
    memcpy(at(ARGS), &call, sizeof call);
    return hypercall(&vm, number, ARGS);
}

static int32_t transfer_answer(void)
{
    struct hvt_block_write call;
    memcpy(&call, at(ARGS), sizeof call);
    return call.ret;
}

static void fill(uint8_t *bytes, uint64_t len, uint32_t seed)
{
    for (uint64_t i = 0; i < len; i++)
        bytes[i] = (uint8_t)((seed = seed * 1103515245 + 12345) >> 16);
}

/* By copy and by system call, in both directions: after an interruption only the rest is served. */
static void test_a_long_transfer_is_interrupted_between_its_pieces_and_goes_on(void)
{
    static uint8_t disk[LONG], held[LONG];
    static const struct {
        uint32_t number;
        uint64_t handle;
    } ways[] = {{HVT_HYPERCALL_BLOCK_WRITE, BLOCK}, /* first by system calls */
                {HVT_HYPERCALL_BLOCK_WRITE, BLOCK}, /* then by copies */
                {HVT_HYPERCALL_BLOCK_READ, BLOCK},
                {HVT_HYPERCALL_BLOCK_READ, BLOCK_RO}};
    for (uint32_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        const bool writing = ways[i].number == HVT_HYPERCALL_BLOCK_WRITE;
        const int fd = vm.devices[ways[i].handle].fd;
        fill(disk, LONG, i + 1);
        fill(held, LONG, i + 100);
        HOLDS(pwrite(fd, disk, LONG, 8) == LONG);
        memcpy(at(LONG_BUFFER), held, LONG);
        handled = 0;
        raise(SIGUSR1);
        HOLDS(transfer(ways[i].number, ways[i].handle, 8, LONG) == EXIT);
        HOLDS(vm.shared->event.kind == EVENT_INTERRUPTED && handled == 1 && vm.resume.bytes_done == PIECE);
        raise(SIGUSR1);
        HOLDS(hypercall_resume(&vm) == EXIT && vm.resume.bytes_done == 2 * PIECE && transfer_answer() == 99);
        if (!writing) { /* what is done is not done again */
            memset(at(LONG_BUFFER), 0, 2 * PIECE);
            memset(disk, 0, 2 * PIECE);
        }
        HOLDS(hypercall_resume(&vm) == CONTINUE && transfer_answer() == HVT_R_OK);
        HOLDS(memcmp(at(LONG_BUFFER), writing ? held : disk, LONG) == 0);
        if (writing)
            HOLDS(pread(fd, disk, LONG, 8) == LONG && memcmp(disk, held, LONG) == 0);
        HOLDS(hypercall_resume(&vm) == CONTINUE); /* nothing left to resume */
    }
    HOLDS(vm.shared->counters.block_writes == 2 && vm.shared->counters.block_write_bytes == 2 * LONG);
    HOLDS(vm.shared->counters.block_reads == 2 && vm.shared->counters.block_read_bytes == 2 * LONG);
}

static void test_a_stop_is_obeyed_in_the_middle_of_a_transfer(void)
{
    static const uint64_t handles[] = {BLOCK, BLOCK_RO}; /* a mapped disk, and one that is not mapped */
    for (uint32_t i = 0; i < 2; i++) {
        HOLDS(transfer(HVT_HYPERCALL_BLOCK_READ, handles[i], 0, DISK) == CONTINUE);
        vm_stop(&vm);
        HOLDS(transfer(HVT_HYPERCALL_BLOCK_READ, handles[i], 0, DISK) == EXIT);
        HOLDS(vm.shared->event.kind == EVENT_STOPPED && vm.resume.bytes_done == PIECE);
        HOLDS(transfer(HVT_HYPERCALL_BLOCK_READ, handles[i], 0, PIECE) == CONTINUE);
        HOLDS(transfer(HVT_HYPERCALL_BLOCK_READ, handles[i], 0, PIECE + 8) == EXIT);
        uint64_t asked;
        HOLDS(read(vm.stop_fd, &asked, sizeof asked) == sizeof asked);
        atomic_store(&vm.stop_requested, false);
    }
    HOLDS(vm.shared->counters.block_reads == 4);
}

static void test_a_long_request_of_a_batch_is_interrupted_too(void)
{
    put_request(0, write_from(0, LONG_BUFFER, LONG));
    put_request(1, write_from(0, LONG_BUFFER, 512));
    put_request(2, write_from(0, LONG_BUFFER, LONG));
    raise(SIGUSR1);
    HOLDS(submit(3) == EXIT && vm.shared->event.kind == EVENT_INTERRUPTED && answered() == 0);
    HOLDS(vm.resume.batch_done == 0 && vm.resume.bytes_done == PIECE);
    put_request(0, write_from(0, LONG_BUFFER, 512)); /* the request was read earlier; this one is not used */
    HOLDS(hypercall_resume(&vm) == CONTINUE && ends_with(3, HVT_R_OK) && answer(2) == HVT_R_OK);
    HOLDS(vm.shared->counters.block_write_bytes == 512 + 512 + LONG);
    uint8_t tail[8];
    fill(at(LONG_BUFFER), LONG, 7);
    put_request(0, write_from(DISK - LONG, LONG_BUFFER, LONG));
    raise(SIGUSR1);
    HOLDS(submit(1) == EXIT && hypercall_resume(&vm) == CONTINUE && ends_with(1, HVT_R_OK));
    HOLDS(pread(vm.devices[BLOCK].fd, tail, sizeof tail, DISK - sizeof tail) == sizeof tail);
    HOLDS(memcmp(tail, at(LONG_BUFFER + LONG - sizeof tail), sizeof tail) == 0);
}

static void test_a_transfer_that_is_interrupted_goes_on_as_it_was_made(void)
{
    static const uint64_t lens[] = {PIECE, PIECE + 8, 2 * PIECE, 512, 0};
    for (uint32_t i = 0; i < sizeof lens / sizeof *lens; i++) {
        raise(SIGUSR1);
        HOLDS(transfer(HVT_HYPERCALL_BLOCK_READ, BLOCK_RO, 0, LONG) == EXIT);
        const struct hvt_block_write shorter = {BLOCK_RO, 0, LONG_BUFFER, lens[i], 99};
        memcpy(at(ARGS), &shorter, sizeof shorter);
        HOLDS(hypercall_resume(&vm) == CONTINUE && transfer_answer() == HVT_R_OK);
        HOLDS(vm.shared->counters.block_read_bytes == (i + 1u) * LONG);
    }
}

static void test_what_a_batch_reads_is_cached_for_the_next(void)
{
    for (uint32_t i = 0; i < 8; i++)
        put_request(i, read_to((7 - i) * 3 * PAGE, BUFFER, PAGE)); /* not adjacent: started together */
    HOLDS(submit(8) == CONTINUE && answer(0) == HVT_R_OK && answer(7) == HVT_R_OK);
    int fd = vm.devices[BLOCK].fd;
    vm.devices[BLOCK].fd = -1;
    for (uint32_t i = 0; i < 8; i++)
        put_request(i, read_to(i * 3 * PAGE, BUFFER, PAGE));
    put_request(8, read_to(PAGE, BUFFER, PAGE)); /* was not requested before */
    HOLDS(submit(9) == CONTINUE && answer(0) == HVT_R_OK && answer(7) == HVT_R_OK);
    HOLDS(answer(8) == HVT_R_EUNSPEC);
    vm.devices[BLOCK].fd = fd;
}

int main(void)
{
    signal(SIGUSR1, on_signal);
    static void (*const tests[])(void) = {
        test_requests_are_served_in_order_and_each_has_its_answer,
        test_each_request_is_checked_as_if_it_came_alone,
        test_an_address_that_is_not_the_guests_ends_it,
        test_false_counts_and_arrays,
        test_requests_that_change_while_they_are_served,
        test_a_guest_without_the_feature_cannot_make_it,
        test_a_stop_is_obeyed_between_requests,
        test_a_signal_interrupts_and_the_batch_goes_on_where_it_was,
        test_a_batch_that_is_interrupted_goes_on_as_it_was_made,
        test_a_long_transfer_is_interrupted_between_its_pieces_and_goes_on,
        test_a_stop_is_obeyed_in_the_middle_of_a_transfer,
        test_a_long_request_of_a_batch_is_interrupted_too,
        test_a_transfer_that_is_interrupted_goes_on_as_it_was_made,
        test_what_a_batch_reads_is_cached_for_the_next,
    };
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        set_up();
        tests[i]();
        tear_down();
    }
    return claims_end();
}
