/*
 * System calls of a program without a libc. They use one instruction, in entry_x86_64.S, which the filter
 * recognizes by its address. The answers are the kernel's: a value, or -errno.
 */
#ifndef TENDER_SANDBOX_SYSCALLS_H
#define TENDER_SANDBOX_SYSCALLS_H

#include <stdint.h>

/*
 * A jump there and back instead of call and return: after a system call, the processor predicts a return from
 * the kernel's own calls and is wrong, which costs as much as the handler's work. The kernel keeps all
 * registers except RAX, RCX and R11.
 */
#define SYSTEM_CALL "lea 1f(%%rip), %%rcx\n\tpush %%rcx\n\tjmp syscall_instruction\n1:"

/* The six arguments in the kernel's order. */
static inline int64_t system_call(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f,
                                  uint64_t number)
{
    register uint64_t r10 __asm__("r10") = d;
    register uint64_t r8 __asm__("r8") = e;
    register uint64_t r9 __asm__("r9") = f;
    uint64_t answer = number;
    __asm__ volatile(SYSTEM_CALL
                     : "+a"(answer)
                     : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "cc", "memory");
    return (int64_t)answer;
}

/* For calls with three arguments: the kernel does not read the registers of the other arguments. */
static inline int64_t system_call_3(uint64_t a, uint64_t b, uint64_t c, uint64_t number)
{
    uint64_t answer = number;
    __asm__ volatile(SYSTEM_CALL : "+a"(answer) : "D"(a), "S"(b), "d"(c) : "rcx", "r11", "cc", "memory");
    return (int64_t)answer;
}

/* The address after the instruction, which the filter sees as the caller's. */
extern const char system_call_return[];

/* Finds clock_gettime() in the vDSO at `ehdr` (AT_SYSINFO_EHDR, 0: none). Without a vDSO it is a system
 * call. */
void clock_find(const uint8_t *ehdr);

#endif
