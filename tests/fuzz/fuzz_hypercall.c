/*
 * Hypercalls under libFuzzer: the input is a guest's structures in memory and a list of calls.
 *
 *   input: up to 64 records of 56 bytes: u8 number, 3 unused, u32 gpa, 48 bytes of structure. A number with
 *          its upper bit set makes no call: the 48 bytes are requests of a batch that comes later.
 *
 * Whatever a call names, memory that the guest may not write stays unchanged: the low megabyte, the
 * text, and the pages after the end, which have no rights, so that a stray access raises SIGSEGV.
 * Every change in memory was reported by entered().
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../native/devices.h"
#include "console.h"
#include "disk_map.h"
#include "entered.h"
#include "guarded_memory.h"
#include "hypercall.h"
#include "must.h"
#include "runner.h"

#define M            0x200000u
#define TEXT         0x100000u
#define TEXT_END     0x104000u
#define DISK         16384u
#define RECORD_BYTES 56u
#define BODY_BYTES   48u
#define RECORDS_MAX  64u

static struct vm vm;
static int wire;

static uint8_t replica[M]; /* what the guest wrote, and what entered() reported */

static void on_entered(struct entry_listener *listener, gpa_t gpa, uint64_t len, enum entered_source source)
{
    (void)listener;
    (void)source;
    MUST(gpa < M && len && len <= M - gpa);
    memcpy(replica + gpa, vm.memory.hva + gpa, len);
}

static struct entry_listener listener = {on_entered};

static void guest_writes(gpa_t gpa, const void *from, size_t len)
{
    memcpy(vm.memory.hva + gpa, from, len);
    memcpy(replica + gpa, from, len);
}

static void set_up(void)
{
    int net[2];
    memset(&vm, 0, sizeof vm);
    MUST(vm_init(&vm) == 0);
    MUST(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, net) == 0);
    wire = net[1];
    guarded_memory(&vm, M);
    vm.memory.ranges[0] = (struct guest_range){TEXT, TEXT_END, SEGMENT_EXEC};
    vm.memory.range_count = 1;
    guest_memory_ranges_set(&vm.memory);
    int disk = memfd_create("disk", 0);
    MUST(ftruncate(disk, DISK) == 0);
    vm.devices[1] = net_on(net[0], (struct net_device){.is_socket = true});
    vm.devices[2] = disk_on(disk, (struct disk){.capacity = DISK});
    vm.device_end = 3;
    vm.count_of[MFT_NET_BASIC] = vm.count_of[MFT_BLOCK_BASIC] = 1;
    vm.extensions = TENDER_FEATURE_GATE | TENDER_FEATURE_BLOCK_BATCH | TENDER_FEATURE_NET_BATCH |
                    TENDER_FEATURE_NET_OFFLOAD;
    disk_map_open(&disk_of(&vm.devices[2])->map, disk, DISK, false, 16, &(uint64_t){DISK_MAPPED_BYTES_MAX});
    console_set(&vm, open("/dev/null", O_WRONLY));
    memset(vm.memory.hva, 0x11, TEXT_END);
    memcpy(replica, vm.memory.hva, M);
    vm.memory.listener = &listener;
    sigset_t saved;
    vm_enter(&vm, &saved);
}

static void check_untouched(void)
{
    static uint8_t expected[TEXT_END];
    if (!expected[0])
        memset(expected, 0x11, sizeof expected);
    MUST(memcmp(vm.memory.hva, expected, sizeof expected) == 0);
    MUST(memcmp(vm.memory.hva, replica, M) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!vm.memory.hva)
        set_up();
    uint8_t drop[2048];
    const uint64_t at_once = 0;
    for (unsigned i = 0; i < RECORDS_MAX && size >= RECORD_BYTES; i++) {
        uint32_t number = data[0], gpa;
        memcpy(&gpa, data + 4, sizeof gpa);
        bool lands = gpa >= TEXT_END && gpa <= M - BODY_BYTES;
        if (lands)
            guest_writes(gpa, data + 8, BODY_BYTES);
        if (number == HVT_HYPERCALL_POLL && lands) /* do not wait for a timeout that the fuzzer chose */
            guest_writes(gpa, &at_once, sizeof at_once);
        if (number == TENDER_HYPERCALL_NET_BATCH && lands)
            guest_writes(gpa + offsetof(struct tender_net_batch, timeout_ns), &at_once, sizeof at_once);
        if ((number == HVT_HYPERCALL_POLL || number == TENDER_HYPERCALL_NET_BATCH) && !lands && gpa <= M - 8)
            gpa = M; /* the same for a structure at another address */
        if (number & 0x80) {
            data += RECORD_BYTES;
            size -= RECORD_BYTES;
            continue;
        }
        vm.shared->event = (struct vm_event){0};
        enum verdict verdict = hypercall(&vm, number, gpa);
        MUST(verdict == CONTINUE || vm.shared->event.kind != EVENT_NONE);
        MUST(verdict == EXIT || vm.shared->event.kind == EVENT_NONE);
        MUST(vm.shared->event.kind != EVENT_HOST_ERROR);
        if (i % 2)
            (void)send(wire, data, RECORD_BYTES, 0);
        while (recv(wire, drop, sizeof drop, 0) > 0)
            ;
        data += RECORD_BYTES;
        size -= RECORD_BYTES;
    }
    check_untouched();
    return 0;
}

#ifdef FUZZ_STANDALONE
int main(void)
{
    static uint8_t zero[RECORD_BYTES];
    return LLVMFuzzerTestOneInput(zero, sizeof zero);
}
#endif
