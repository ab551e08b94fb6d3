/*
 * The disks' own filter under libFuzzer (bindings/machine/disk_guard.c): any disks, any system
 * call.
 *
 *   input: u8 devices; for each of them u8 kind (1: disk, 2: read-only, 4: network) and u64 capacity; then
 *          system calls: u8 number, u8 descriptor, u8 edges, u64 count, u64 offset
 *
 * The kernel accepts the filter program. The filter allows a pwrite64 that lies inside a writable
 * disk, kills for any other pwrite64, and lets every other call pass. A BPF interpreter in this
 * file executes the program, and its verdict is compared with one line of C in 128 bits.
 */
#include <asm/unistd.h>
#include <linux/audit.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../bindings/machine/sandbox/fds.h"
#include "../native/devices.h"
#include "disk_guard.h"
#include "must.h"

#define CALLS_MAX 64u

static struct vm vm;

static bool take(const uint8_t **data, size_t *size, void *to, size_t len)
{
    if (*size < len)
        return false;
    memcpy(to, *data, len);
    *data += len;
    *size -= len;
    return true;
}

/* Executes the program as the kernel does: 32 bits, only forward jumps. */
static uint32_t execute(const struct sock_filter *code, uint32_t length, const struct seccomp_data *call)
{
    uint32_t a = 0, x = 0, memory[BPF_MEMWORDS];
    bool stored[BPF_MEMWORDS] = {false};
    for (uint32_t at = 0; at < length; at++) {
        const uint32_t k = code[at].k;
        switch (code[at].code) {
        case BPF_LD | BPF_W | BPF_ABS:
            MUST(k % 4 == 0 && k <= sizeof *call - 4); /* what seccomp_check_filter() accepts */
            memcpy(&a, (const uint8_t *)call + k, sizeof a);
            break;
        case BPF_LD | BPF_IMM:
            a = k;
            break;
        case BPF_LD | BPF_MEM:
            MUST(k < BPF_MEMWORDS && stored[k]);
            a = memory[k];
            break;
        case BPF_LDX | BPF_MEM:
            MUST(k < BPF_MEMWORDS && stored[k]);
            x = memory[k];
            break;
        case BPF_ST:
            MUST(k < BPF_MEMWORDS);
            memory[k] = a;
            stored[k] = true;
            break;
        case BPF_MISC | BPF_TAX:
            x = a;
            break;
        case BPF_ALU | BPF_SUB | BPF_X:
            a -= x;
            break;
        case BPF_ALU | BPF_SUB | BPF_K:
            a -= k;
            break;
        case BPF_JMP | BPF_JA:
            at += k;
            break;
        case BPF_JMP | BPF_JEQ | BPF_K:
            at += a == k ? code[at].jt : code[at].jf;
            break;
        case BPF_JMP | BPF_JEQ | BPF_X:
            at += a == x ? code[at].jt : code[at].jf;
            break;
        case BPF_JMP | BPF_JGT | BPF_X:
            at += a > x ? code[at].jt : code[at].jf;
            break;
        case BPF_JMP | BPF_JGE | BPF_X:
            at += a >= x ? code[at].jt : code[at].jf;
            break;
        case BPF_RET | BPF_K:
            return k;
        default:
            MUST(!"an instruction that no filter of ours needs");
        }
    }
    MUST(!"it ends by a return");
    return 0;
}

static uint32_t expected(const struct seccomp_data *call)
{
    if (call->nr != __NR_pwrite64)
        return SECCOMP_RET_ALLOW;
    for (uint32_t handle = 0; handle < vm.device_end; handle++) {
        const struct vm_device *device = &vm.devices[handle];
        if (device->type != MFT_BLOCK_BASIC || disk_of(device)->read_only)
            continue;
        if ((uint32_t)call->args[0] == SANDBOX_FDS_block + handle) /* the kernel's descriptors have 32 bits */
            return (unsigned __int128)call->args[2] + call->args[3] <= disk_of(device)->capacity
                       ? SECCOMP_RET_ALLOW
                       : SECCOMP_RET_KILL_PROCESS;
    }
    return SECCOMP_RET_KILL_PROCESS;
}

/* Whether the kernel accepts the program. Its rules (check_load_and_stores() and others in
 * net/core/filter.c) are also those of seccomp. */
static bool kernel_takes(struct sock_filter *code, uint32_t length)
{
    static int probe = -1;
    const struct sock_fprog program = {(unsigned short)length, code};
    if (probe < 0)
        probe = socket(AF_UNIX, SOCK_DGRAM, 0);
    MUST(probe >= 0);
    return setsockopt(probe, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0;
}

/* Counts and offsets near a capacity, or anywhere. */
static uint64_t edge(unsigned how, uint64_t value, uint64_t capacity)
{
    switch (how % 6) {
    case 0:
        return capacity - value % 3 + 1;
    case 1:
        return value % 3;
    case 2:
        return value % (capacity ? capacity : 1);
    case 3:
        return (value & 0xffffffff00000000) | (uint32_t)capacity;
    case 4:
        return (capacity & 0xffffffff00000000) | (uint32_t)value;
    default:
        return value;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t devices, kind;
    memset(vm.devices, 0, sizeof vm.devices);
    if (!take(&data, &size, &devices, 1))
        return 0;
    for (vm.device_end = 0; vm.device_end < devices % (MFT_MAX_ENTRIES + 1); vm.device_end++) {
        struct vm_device *device = &vm.devices[vm.device_end];
        if (!take(&data, &size, &kind, 1) || !take(&data, &size, &disk_of(device)->capacity, 8))
            break;
        device->type = kind & 1 ? MFT_BLOCK_BASIC : kind & 4 ? MFT_NET_BASIC : 0;
        disk_of(device)->read_only = kind & 2;
        device->fd = SANDBOX_FDS_block + (int)vm.device_end;
    }
    /* Exactly as long as the program may become: a write past it is found. */
    struct sock_filter *code = malloc(DISK_GUARD_LENGTH * sizeof *code);
    MUST(code);
    const uint32_t length = disk_guard_build(code, &vm);
    MUST(length > 0 && length <= DISK_GUARD_LENGTH && kernel_takes(code, length));
    uint8_t head[3];
    uint64_t count, offset;
    for (unsigned i = 0; i < CALLS_MAX && take(&data, &size, head, sizeof head); i++) {
        if (!take(&data, &size, &count, 8) || !take(&data, &size, &offset, 8))
            break;
        const uint64_t capacity = vm.device_end ? disk_of(&vm.devices[head[1] % vm.device_end])->capacity : 0;
        struct seccomp_data call = {.nr = head[0] & 1 ? head[0] : __NR_pwrite64, .arch = AUDIT_ARCH_X86_64};
        call.args[0] = head[0] & 2 ? head[1] : SANDBOX_FDS_block + head[1] % (vm.device_end + 1);
        call.args[0] |= head[0] & 4 ? (uint64_t)head[1] << 32 : 0;
        call.args[2] = edge(head[2], count, capacity);
        call.args[3] = edge(head[2] / 6, offset, capacity);
        if (head[2] >= 200) /* exactly at the end, or one byte past it */
            call.args[3] = capacity - call.args[2] + head[2] % 2;
        MUST(execute(code, length, &call) == expected(&call));
    }
    free(code);
    return 0;
}
