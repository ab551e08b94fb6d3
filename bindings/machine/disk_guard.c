/*
 * See disk_guard.h. Freestanding: no libc.
 *
 * A BPF word has 32 bits, so 64-bit values are compared in halves:
 *
 *     is it pwrite64, and to which disk?      M[LOW], M[HIGH] = capacity; not a writable disk: kill
 *     count <= capacity ?                     else kill
 *     M = capacity - count                    with the borrow
 *     offset <= M ?                           allow, else kill
 */
#include "disk_guard.h"

#include <asm/unistd.h>
#include <linux/seccomp.h>
#include <stddef.h>

#include "device_ops.h"

#define ARGUMENT_LOW(n)  (uint32_t)(offsetof(struct seccomp_data, args) + 8 * (n))
#define ARGUMENT_HIGH(n) (ARGUMENT_LOW(n) + 4)
#define FD               0
#define COUNT            2
#define OFFSET           3

#define LOW  0 /* slots of BPF's scratch memory */
#define HIGH 1

#define LOAD(at)          BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (at))
#define LOAD_NUMBER(k)    BPF_STMT(BPF_LD | BPF_IMM, (k))
#define LOAD_PLACE(m)     BPF_STMT(BPF_LD | BPF_MEM, (m))
#define LOAD_X_PLACE(m)   BPF_STMT(BPF_LDX | BPF_MEM, (m))
#define STORE(m)          BPF_STMT(BPF_ST, (m))
#define COPY_TO_X         BPF_STMT(BPF_MISC | BPF_TAX, 0)
#define SUBTRACT_X        BPF_STMT(BPF_ALU | BPF_SUB | BPF_X, 0)
#define SUBTRACT_ONE      BPF_STMT(BPF_ALU | BPF_SUB | BPF_K, 1)
#define IF_X(test, t, f)  BPF_JUMP(BPF_JMP | (test) | BPF_X, 0, (t), (f))
#define IF(test, k, t, f) BPF_JUMP(BPF_JMP | (test) | BPF_K, (k), (t), (f))
#define SKIP(n)           BPF_STMT(BPF_JMP | BPF_JA, (n))
#define KILL              BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)
#define ALLOW             BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

#define DISK_LENGTH 6

/* Runs with the capacity in M. Every path ends here. */
static const struct sock_filter check[] = {
    LOAD(ARGUMENT_HIGH(COUNT)),
    LOAD_X_PLACE(HIGH),
    IF_X(BPF_JGT, 4, 0),
    IF_X(BPF_JEQ, 0, 4),
    LOAD(ARGUMENT_LOW(COUNT)),
    LOAD_X_PLACE(LOW),
    IF_X(BPF_JGT, 0, 1),
    KILL,
    /* count <= capacity */
    LOAD(ARGUMENT_LOW(COUNT)),
    COPY_TO_X,
    LOAD_PLACE(LOW),
    IF_X(BPF_JGE, 5, 0),
    SUBTRACT_X,
    STORE(LOW),
    LOAD_PLACE(HIGH),
    SUBTRACT_ONE,
    SKIP(3),
    SUBTRACT_X,
    STORE(LOW),
    LOAD_PLACE(HIGH),
    STORE(HIGH),
    LOAD(ARGUMENT_HIGH(COUNT)),
    COPY_TO_X,
    LOAD_PLACE(HIGH),
    SUBTRACT_X,
    STORE(HIGH),
    /* offset <= capacity - count */
    LOAD(ARGUMENT_HIGH(OFFSET)),
    LOAD_X_PLACE(HIGH),
    IF_X(BPF_JGT, 5, 0),
    IF_X(BPF_JEQ, 0, 3),
    LOAD(ARGUMENT_LOW(OFFSET)),
    LOAD_X_PLACE(LOW),
    IF_X(BPF_JGT, 1, 0),
    ALLOW,
    KILL,
};
#define CHECK_LENGTH (sizeof check / sizeof *check)

_Static_assert(3 + DISK_LENGTH * MFT_MAX_ENTRIES + 1 + CHECK_LENGTH <= DISK_GUARD_LENGTH, "it fits");

/* Whether the guest may write the disk's file. The file's first byte is the disk's first byte. */
static bool is_written(const struct vm_device *device)
{
    return device_has_places(device) && !device_places(device).read_only;
}

uint32_t disk_guard_build(struct sock_filter code[DISK_GUARD_LENGTH], const struct vm *vm)
{
    uint32_t length = 0, disks = 0, at = 0; /* `disks` counts the writable ones */
    for (uint32_t handle = 0; handle < vm->device_end; handle++)
        disks += is_written(&vm->devices[handle]);

    /* The main filter has already checked the architecture and the address of the call. */
    code[length++] = (struct sock_filter)LOAD((uint32_t)offsetof(struct seccomp_data, nr));
    code[length++] = (struct sock_filter)IF(BPF_JEQ, __NR_pwrite64, 1, 0);
    code[length++] = (struct sock_filter)ALLOW;
    code[length++] = (struct sock_filter)LOAD(ARGUMENT_LOW(FD));
    for (uint32_t handle = 0; handle < vm->device_end; handle++) {
        const struct vm_device *device = &vm->devices[handle];
        if (!is_written(device))
            continue;
        /* The check follows the last disk, and ends in a KILL. No instruction that returns may stand between
         * them: the kernel tracks M through it and would refuse the filter (check_load_and_stores() in
         * net/core/filter.c). */
        const uint64_t bytes = device_places(device).bytes;
        const uint8_t otherwise = (uint8_t)(DISK_LENGTH - 1 + (++at == disks ? CHECK_LENGTH - 1 : 0));
        const struct sock_filter disk[DISK_LENGTH] = {
            IF(BPF_JEQ, (uint32_t)device->fd, 0, otherwise),
            LOAD_NUMBER((uint32_t)bytes),
            STORE(LOW),
            LOAD_NUMBER((uint32_t)(bytes >> 32)),
            STORE(HIGH),
            SKIP((disks - at) * DISK_LENGTH),
        };
        for (uint32_t i = 0; i < DISK_LENGTH; i++)
            code[length++] = disk[i];
    }
    if (!disks)
        code[length++] = (struct sock_filter)KILL;
    for (uint32_t i = 0; disks && i < CHECK_LENGTH; i++)
        code[length++] = check[i];
    return length;
}
