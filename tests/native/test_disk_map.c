/*
 * A disk as memory: what is copied and what is left to system calls, copies that fail, and the
 * process's handler of SIGBUS. Prints one TAP line for each check and exits with 1 if one fails.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "copy_fault.h"
#include "devices.h"
#include "disk_map.h"
#include "guarded_copy.h"
#include "holds.h"
#include "hypercall.h"
#include "runner.h"

#define M      0x400000u
#define ARGS   0x200000u
#define BUFFER 0x210000u
#define PAGE   4096u
#define PAGES  16u
#define TAIL   1536u /* of the disk's last page */
#define DISK   (PAGES * PAGE + TAIL)
#define BLOCK  1

static struct vm vm;
static sigset_t saved;

static struct vm_device *disk(void)
{
    return &vm.devices[BLOCK];
}

static void set_up(void)
{
    memset(&vm, 0, sizeof vm);
    if (vm_init(&vm) < 0)
        abort();
    vm.memory.hva = mmap(NULL, M, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    vm.memory.bytes = M;
    int fd = memfd_create("disk", MFD_ALLOW_SEALING);
    if (ftruncate(fd, DISK) < 0)
        abort();
    vm.devices[BLOCK] =
        disk_on(fd, (struct disk){.capacity = DISK, .mappable_pages = disk_mappable_pages(fd, false)});
    vm.device_end = BLOCK + 1;
    vm.count_of[MFT_BLOCK_BASIC] = 1;
    vm_enter(&vm, &saved);
    copy_fault_prepare(&vm);
}

static void tear_down(void)
{
    vm_leave(&vm, &saved);
    if (disk()->fd >= 0)
        close(disk()->fd);
    vm_release(&vm);
}

static uint8_t *at(gpa_t gpa)
{
    return vm.memory.hva + gpa;
}

static int32_t block(uint32_t number, uint64_t offset, uint64_t len)
{
    struct hvt_block_write args = {BLOCK, offset, BUFFER, len, 77};
    memcpy(at(ARGS), &args, sizeof args);
    if (hypercall(&vm, number, ARGS) != CONTINUE)
        return -1;
    memcpy(&args, at(ARGS), sizeof args);
    return args.ret;
}

static int32_t reads(uint64_t offset, uint64_t len)
{
    return block(HVT_HYPERCALL_BLOCK_READ, offset, len);
}

static int32_t writes(uint64_t offset, uint64_t len)
{
    return block(HVT_HYPERCALL_BLOCK_WRITE, offset, len);
}

/* From here on everything fails except a copy. */
static int without_system_calls(void)
{
    int fd = disk()->fd;
    disk()->fd = -1;
    return fd;
}

static bool file_has(int fd, uint64_t offset, const void *bytes, size_t len)
{
    uint8_t got[2 * PAGE];
    return pread(fd, got, len, (off_t)offset) == (ssize_t)len && memcmp(got, bytes, len) == 0;
}

static void test_a_page_is_copied_from_its_second_read_on(void)
{
    HOLDS(disk_of(disk())->map.hva == NULL);
    HOLDS(pwrite(disk()->fd, "before", 6, 2 * PAGE) == 6);
    HOLDS(reads(2 * PAGE, 512) == HVT_R_OK && memcmp(at(BUFFER), "before", 6) == 0);
    HOLDS(disk_of(disk())->map.bytes == PAGES * PAGE); /* the first call maps the disk, without its tail */
    HOLDS(pwrite(disk()->fd, "behind", 6, 2 * PAGE) == 6);
    int fd = without_system_calls();
    HOLDS(reads(2 * PAGE, 512) == HVT_R_OK && memcmp(at(BUFFER), "behind", 6) == 0);
    HOLDS(reads(2 * PAGE, PAGE) == HVT_R_OK);
    HOLDS(reads(2 * PAGE + 8, 16) == HVT_R_OK);
    HOLDS(reads(2 * PAGE, 2 * PAGE) == HVT_R_EUNSPEC); /* the second page was not read */
    HOLDS(reads(PAGE, 2 * PAGE) == HVT_R_EUNSPEC);
    HOLDS(reads(2 * PAGE + 1, 8) == HVT_R_EUNSPEC); /* not aligned: not copied */
    HOLDS(reads(2 * PAGE, 7) == HVT_R_EUNSPEC);
    HOLDS(writes(2 * PAGE, 512) == HVT_R_EUNSPEC); /* a page that was read is not noted as written */
    disk()->fd = fd;
    HOLDS(reads(PAGE, 3 * PAGE) == HVT_R_OK);
    (void)without_system_calls();
    HOLDS(reads(PAGE, 3 * PAGE) == HVT_R_OK);
    disk()->fd = fd;
}

static void test_a_page_is_copied_from_its_second_write_on_until_it_is_flushed(void)
{
    memset(at(BUFFER), 'a', 2 * PAGE);
    HOLDS(writes(3 * PAGE, 2 * PAGE) == HVT_R_OK);
    int fd = without_system_calls();
    memset(at(BUFFER), 'b', 2 * PAGE);
    HOLDS(writes(3 * PAGE, 2 * PAGE) == HVT_R_OK && file_has(fd, 3 * PAGE, at(BUFFER), 2 * PAGE));
    HOLDS(reads(3 * PAGE, 2 * PAGE) == HVT_R_OK); /* what was written is in the cache */
    HOLDS(writes(4 * PAGE, 2 * PAGE) == HVT_R_EUNSPEC);
    disk_map_flushed(&disk_of(disk())->map);
    HOLDS(writes(3 * PAGE, 512) == HVT_R_EUNSPEC);
    HOLDS(reads(3 * PAGE, 2 * PAGE) == HVT_R_OK);
    disk()->fd = fd;
    HOLDS(writes(3 * PAGE, 512) == HVT_R_OK);
    (void)without_system_calls();
    HOLDS(writes(3 * PAGE, 512) == HVT_R_OK);
    HOLDS(writes(4 * PAGE, 512) == HVT_R_EUNSPEC);
    disk()->fd = fd;
}

static void test_the_disks_last_partial_page_is_not_mapped(void)
{
    const uint64_t tail = PAGES * PAGE;
    uint8_t behind[512] = {0};
    memset(at(BUFFER), 'x', PAGE + TAIL);
    HOLDS(writes(tail, TAIL) == HVT_R_OK && writes(tail, TAIL) == HVT_R_OK);
    HOLDS(writes(tail - PAGE, PAGE + TAIL) == HVT_R_OK && writes(tail - PAGE, PAGE + TAIL) == HVT_R_OK);
    HOLDS(file_has(disk()->fd, tail - PAGE, at(BUFFER), PAGE + TAIL));
    HOLDS(reads(tail - PAGE, PAGE + TAIL) == HVT_R_OK);
    int fd = without_system_calls();
    HOLDS(reads(tail, 512) == HVT_R_EUNSPEC);
    HOLDS(reads(tail - PAGE, PAGE) == HVT_R_OK);
    disk()->fd = fd;
    HOLDS(reads(tail + TAIL - 512, 1024) == HVT_R_EINVAL);
    HOLDS(ftruncate(fd, DISK + 512) == 0 && file_has(fd, DISK, behind, sizeof behind));
    HOLDS(reads(tail + TAIL - 512, 1024) == HVT_R_EINVAL); /* a disk that grew shows no new bytes */
}

static void test_a_disk_that_shrinks_is_an_error_and_no_signal(void)
{
    memset(at(BUFFER), 'y', PAGES * PAGE);
    HOLDS(writes(0, PAGES * PAGE) == HVT_R_OK && reads(0, PAGES * PAGE) == HVT_R_OK);
    HOLDS(ftruncate(disk()->fd, 3 * PAGE) == 0);
    const uint64_t errors = vm.shared->counters.block_errors;
    HOLDS(reads(0, 3 * PAGE) == HVT_R_OK);
    HOLDS(reads(3 * PAGE, 512) == HVT_R_EUNSPEC);
    HOLDS(reads(0, 4 * PAGE) == HVT_R_EUNSPEC);
    HOLDS(vm.shared->counters.block_errors == errors + 2);
    HOLDS(reads(2 * PAGE, PAGE) == HVT_R_OK && at(BUFFER)[PAGE - 1] == 'y');
    /* Within the page of the new end a copy cannot detect the end: it reads zeros. */
    HOLDS(ftruncate(disk()->fd, 2 * PAGE + 512) == 0);
    HOLDS(reads(2 * PAGE, PAGE) == HVT_R_OK && at(BUFFER)[511] == 'y' && at(BUFFER)[512] == 0);
    /* A write by pwrite() extends the file again up to the end of the write. */
    HOLDS(writes(5 * PAGE, 512) == HVT_R_OK);
    struct stat about;
    HOLDS(fstat(disk()->fd, &about) == 0 && about.st_size == 5 * PAGE + 512);
    HOLDS(reads(5 * PAGE, 512) == HVT_R_OK && reads(6 * PAGE, 512) == HVT_R_EUNSPEC);
}

static void test_a_copy_that_fails_in_the_middle_says_how_much_is_left(void)
{
    int fd = memfd_create("file", 0);
    uint8_t *from = NULL, to[2 * PAGE];
    HOLDS(ftruncate(fd, 2 * PAGE) == 0);
    HOLDS(reads(0, 512) == HVT_R_OK); /* the handler exists from the first disk on */
    from = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    memset(from, 'z', 2 * PAGE);
    HOLDS(guarded_copy(to, from, 2 * PAGE / 8) == 0 && to[2 * PAGE - 1] == 'z');
    HOLDS(ftruncate(fd, PAGE) == 0);
    memset(to, 0, sizeof to);
    HOLDS(guarded_copy(to, from, 2 * PAGE / 8) == PAGE / 8 && to[PAGE - 1] == 'z' && to[PAGE] == 0);
    HOLDS(guarded_copy(to, from + PAGE - 8, 3) == 2);
    HOLDS(guarded_copy(to, from + PAGE, 3) == 3);
    HOLDS(guarded_copy(from + PAGE - 16, to, 4) == 2);
    HOLDS(guarded_copy(to, from + PAGE, 0) == 0);
    munmap(from, 2 * PAGE);
    close(fd);
}

static uint64_t random_below(uint64_t end)
{
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % end;
}

static void test_noted_pages_equal_those_of_a_page_by_page_model(void)
{
    enum { MODEL_PAGES = 333 };
    static bool cached[MODEL_PAGES], dirty[MODEL_PAGES];
    int fd = memfd_create("disk", 0);
    struct disk_map map;
    HOLDS(ftruncate(fd, MODEL_PAGES * PAGE + 100) == 0);
    disk_map_open(&map, fd, MODEL_PAGES * PAGE + 512, false, UINT32_MAX, &(uint64_t){DISK_MAPPED_BYTES_MAX});
    HOLDS(map.bytes == MODEL_PAGES * PAGE);
    bool agrees = true;
    for (unsigned i = 0; i < 20000 && agrees; i++) {
        uint64_t offset = random_below(MODEL_PAGES * PAGE + 512);
        uint64_t len = random_below(i % 7 ? 3 * PAGE : MODEL_PAGES * PAGE);
        if (len > MODEL_PAGES * PAGE + 512 - offset)
            len = MODEL_PAGES * PAGE + 512 - offset;
        const bool writing = i % 2;
        if (i % 500 == 499) {
            disk_map_flushed(&map);
            memset(dirty, 0, sizeof dirty);
        }
        if (i % 1000 == 999) { /* starts from nothing, so that there is always something to note */
            memset(map.cached, 0, (MODEL_PAGES + 63) / 64 * 8);
            memset(cached, 0, sizeof cached);
        }
        if (i % 3 == 0) {
            disk_map_note(&map, writing, len, offset);
            for (uint64_t page = offset / PAGE; len && page < MODEL_PAGES && page * PAGE < offset + len;
                 page++) {
                cached[page] = true;
                dirty[page] |= writing;
            }
        }
        uint64_t expected = 0;
        while (expected < len && (offset + expected) / PAGE < MODEL_PAGES &&
               cached[(offset + expected) / PAGE])
            expected++;
        agrees = disk_map_cached(&map, len, offset) == expected;
        uint64_t dirty_pages = 0, dirty_bits = 0;
        for (unsigned page = 0; page < MODEL_PAGES; page++) {
            dirty_pages += dirty[page];
            dirty_bits += map.dirty[page / 64] >> page % 64 & 1;
        }
        agrees &= dirty_pages == dirty_bits;
    }
    HOLDS(agrees);
    HOLDS(map.dirty[MODEL_PAGES / 64] >> MODEL_PAGES % 64 == 0); /* no bit past the end is set */
    disk_map_close(&map);
    disk_map_close(&map);
    HOLDS(map.hva == NULL && disk_map_cached(&map, 512, 0) == 0);
    close(fd);
}

static void test_past_a_limit_all_notes_are_dropped_and_made_again(void)
{
    HOLDS(reads(0, 512) == HVT_R_OK);
    disk_of(disk())->map.page_limit = 6;
    for (uint64_t page = 1; page < 6; page++)
        HOLDS(writes(page * PAGE, PAGE) == HVT_R_OK);
    int fd = without_system_calls();
    HOLDS(reads(0, 6 * PAGE) == HVT_R_OK && writes(PAGE, 5 * PAGE) == HVT_R_OK);
    disk()->fd = fd;
    HOLDS(reads(6 * PAGE, 2 * PAGE) == HVT_R_OK);
    (void)without_system_calls();
    HOLDS(reads(6 * PAGE, 2 * PAGE) == HVT_R_OK);
    HOLDS(reads(0, 512) == HVT_R_EUNSPEC && reads(5 * PAGE, 512) == HVT_R_EUNSPEC);
    HOLDS(writes(PAGE, 512) == HVT_R_EUNSPEC);
    disk()->fd = fd;
    HOLDS(reads(0, PAGES * PAGE) == HVT_R_OK); /* one read of more pages than the limit */
    (void)without_system_calls();
    HOLDS(reads(0, PAGES * PAGE) == HVT_R_OK);
    disk()->fd = fd;
}

static void test_an_unmapped_disk_is_served_by_system_calls(void)
{
    vm.map_devices = NULL;
    memset(at(BUFFER), 'q', PAGE);
    for (unsigned i = 0; i < 3; i++)
        HOLDS(writes(0, PAGE) == HVT_R_OK && reads(0, PAGE) == HVT_R_OK);
    HOLDS(file_has(disk()->fd, 0, at(BUFFER), PAGE) && disk_of(disk())->map.hva == NULL);
    struct disk_map map;
    disk_map_open(&map, disk()->fd, (uint64_t)1 << 62, false, UINT32_MAX,
                  &(uint64_t){(uint64_t)1 << 62}); /* more than the address space has */
    HOLDS(map.hva == NULL);
    disk_map_open(&map, disk()->fd, PAGE - 512, false, UINT32_MAX,
                  &(uint64_t){DISK_MAPPED_BYTES_MAX}); /* less than a page */
    HOLDS(map.hva == NULL);
    int pipe_ends[2];
    HOLDS(pipe(pipe_ends) == 0);
    disk_map_open(&map, pipe_ends[0], PAGE, false, UINT32_MAX, &(uint64_t){DISK_MAPPED_BYTES_MAX});
    HOLDS(map.hva == NULL);
}

/* The disks of a VM share the budget. A disk after it, or across its end, is served by system calls. */
static void test_a_vm_maps_its_budget_and_no_more(void)
{
    const int fd = disk()->fd;
    struct disk_map first, second, third;
    uint64_t budget = 3 * PAGE + 512;
    disk_map_open(&first, fd, 2 * PAGE, false, UINT32_MAX, &budget);
    HOLDS(first.bytes == 2 * PAGE && budget == PAGE + 512);
    disk_map_open(&second, fd, 8 * PAGE, false, UINT32_MAX, &budget);
    HOLDS(second.bytes == PAGE && budget == 512);
    disk_map_open(&third, fd, 8 * PAGE, false, UINT32_MAX, &budget);
    HOLDS(!third.hva && !third.bytes && budget == 512);
    disk_map_close(&first);
    disk_map_close(&third);
    vm.map_devices = NULL;
    disk_of(disk())->map = second;
    for (unsigned i = 0; i < 3; i++) {
        memset(at(BUFFER), 'a' + (int)i, 2 * PAGE);
        HOLDS(writes(0, 2 * PAGE) == HVT_R_OK && file_has(fd, 0, at(BUFFER), 2 * PAGE));
        memset(at(BUFFER), 0, 2 * PAGE);
        HOLDS(reads(0, 2 * PAGE) == HVT_R_OK && file_has(fd, 0, at(BUFFER), 2 * PAGE));
        HOLDS(reads(2 * PAGE, PAGE) == HVT_R_OK && file_has(fd, 2 * PAGE, at(BUFFER), PAGE));
    }
}

static void test_which_descriptors_are_mapped(void)
{
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", disk()->fd);
    static const struct {
        int flags;
        bool wanted;
    } cases[] = {
        {O_RDWR, true}, {O_RDWR | O_APPEND, false}, {O_RDWR | O_DSYNC, false}, {O_RDWR | O_SYNC, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int fd = open(path, cases[i].flags);
        HOLDS(fd >= 0 && (disk_mappable_pages(fd, false) != 0) == cases[i].wanted);
        close(fd);
    }
    HOLDS(!disk_mappable_pages(disk()->fd, true)); /* a file in memory: reading its holes would fill them */
    int here = open("/proc/self/exe", O_RDONLY);
    const long half = sysconf(_SC_PHYS_PAGES) / 2;
    HOLDS(disk_mappable_pages(here, true) >= 1024 && disk_mappable_pages(here, true) < half);
    close(here);
    HOLDS(!disk_mappable_pages(-1, true));
}

/* ---- SIGBUS that is not ours */

static void theirs(int signal)
{
    _exit(signal == SIGBUS ? 7 : 8);
}

static void theirs_with_information(int signal, siginfo_t *info, void *frame)
{
    (void)frame;
    _exit(signal == SIGBUS && info->si_code == BUS_ADRERR ? 9 : 8);
}

static struct sigaction found;

/* Restores the action that it found, and raises the signal, like faulthandler. */
static void theirs_that_puts_back(int signal)
{
    static int entered;
    if (entered++)
        _exit(8);
    (void)sigaction(SIGBUS, &found, NULL);
    (void)raise(signal);
}

static sigjmp_buf back;

static void theirs_that_jumps(int signal)
{
    (void)signal;
    siglongjmp(back, 1);
}

static void touch_past_the_end(void)
{
    int fd = memfd_create("short", 0);
    volatile uint8_t *short_map = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
    (void)short_map[0];
}

/* Returns how a child that does `act` ends: its status, or 256 + signal. */
static int end_of(void (*act)(void))
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        const struct rlimit none = {0, 0};
        (void)setrlimit(RLIMIT_CORE, &none);
        act();
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

static void set_action(void (*handler)(int))
{
    struct sigaction action = {.sa_handler = handler};
    (void)sigaction(SIGBUS, &action, NULL);
    (void)reads(0, 512); /* this installs our handler over it */
}

static void act_default(void)
{
    set_action(SIG_DFL);
    touch_past_the_end();
}

static void act_default_sent(void)
{
    set_action(SIG_DFL);
    (void)raise(SIGBUS);
}

static void act_ignored(void)
{
    set_action(SIG_IGN);
    touch_past_the_end();
}

static void act_ignored_sent(void)
{
    set_action(SIG_IGN);
    (void)raise(SIGBUS);
}

static void act_handler(void)
{
    set_action(theirs);
    touch_past_the_end();
}

static void act_handler_sent(void)
{
    set_action(theirs);
    (void)raise(SIGBUS);
}

static void act_handler_with_information(void)
{
    struct sigaction action = {.sa_sigaction = theirs_with_information, .sa_flags = SA_SIGINFO};
    (void)sigaction(SIGBUS, &action, NULL);
    (void)reads(0, 512);
    touch_past_the_end();
}

static void act_handlers_in_a_ring(void)
{
    (void)reads(0, 512);
    struct sigaction action = {.sa_handler = theirs_that_puts_back};
    (void)sigaction(SIGBUS, &action, &found); /* over ours, which it will restore */
    copy_fault_prepare(&vm);                  /* the next run installs ours over it */
    touch_past_the_end();
}

static void act_handler_that_jumps(void)
{
    set_action(theirs_that_jumps);
    for (unsigned i = 0; i < 3; i++)
        if (!sigsetjmp(back, 1))
            touch_past_the_end();
    _exit(5);
}

static void act_replaced_between_runs(void)
{
    (void)reads(0, 2 * PAGE);
    set_action(theirs);
    copy_fault_prepare(&vm);
    _exit(ftruncate(disk()->fd, 0) == 0 && reads(PAGE, 512) == HVT_R_EUNSPEC ? 6 : 1);
}

static void act_blocked_by_the_caller(void)
{
    sigset_t bus;
    sigemptyset(&bus);
    sigaddset(&bus, SIGBUS);
    pthread_sigmask(SIG_BLOCK, &bus, NULL);
    (void)reads(0, 2 * PAGE); /* the first call unblocks the signal */
    if (ftruncate(disk()->fd, 0) != 0 || reads(PAGE, 512) != HVT_R_EUNSPEC)
        _exit(1);
    pthread_sigmask(SIG_BLOCK, &bus, NULL);
    copy_fault_prepare(&vm); /* and so does every run */
    _exit(reads(PAGE, 512) == HVT_R_EUNSPEC ? 6 : 1);
}

static void test_another_bus_error_has_its_previous_effect(void)
{
    HOLDS(end_of(act_default) == 256 + SIGBUS);
    HOLDS(end_of(act_default_sent) == 256 + SIGBUS);
    HOLDS(end_of(act_ignored) == 256 + SIGBUS); /* no process can ignore a fault */
    HOLDS(end_of(act_ignored_sent) == 0);
    HOLDS(end_of(act_handler) == 7);
    HOLDS(end_of(act_handler_sent) == 7);
    HOLDS(end_of(act_handler_with_information) == 9);
    HOLDS(end_of(act_handlers_in_a_ring) == 256 + SIGBUS);
    HOLDS(end_of(act_handler_that_jumps) == 5);
    HOLDS(end_of(act_replaced_between_runs) == 6);
    HOLDS(end_of(act_blocked_by_the_caller) == 6);
}

int main(void)
{
    static void (*const tests[])(void) = {
        test_another_bus_error_has_its_previous_effect, /* first, while our handler is not installed */
        test_a_page_is_copied_from_its_second_read_on,
        test_a_page_is_copied_from_its_second_write_on_until_it_is_flushed,
        test_the_disks_last_partial_page_is_not_mapped,
        test_a_disk_that_shrinks_is_an_error_and_no_signal,
        test_a_copy_that_fails_in_the_middle_says_how_much_is_left,
        test_noted_pages_equal_those_of_a_page_by_page_model,
        test_past_a_limit_all_notes_are_dropped_and_made_again,
        test_an_unmapped_disk_is_served_by_system_calls,
        test_a_vm_maps_its_budget_and_no_more,
        test_which_descriptors_are_mapped,
    };
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        set_up();
        tests[i]();
        tear_down();
    }
    return claims_end();
}
