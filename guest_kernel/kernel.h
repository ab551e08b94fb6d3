/*
 * What the files of the guest kernel tell each other and the application need not know.
 * Rule: start.c calls each *_init() once, in the order written there; nothing else calls them.
 */
#ifndef TENDER_KERNEL_H
#define TENDER_KERNEL_H

#include <elf.h>

#include "gate.h"
#include "tender/guest.h"

/* start.c: entered by _start (boot_x86_64.S) on the boot stack with the boot info the tender wrote. */
_Noreturn void guest_start(const struct hvt_boot_info *boot);

/* trap.c: loads our GDT, TSS and IDT. Before it a fault is a triple fault. */
void trap_init(void);

/* clock.c: takes the counter's frequency and the origin of the monotonic clock. */
void clock_init(uint64_t tsc_hz);

/* memory.c: the heap is [from, to), both multiples of 16. */
void memory_init(uintptr_t from, uintptr_t to, uint64_t mem_bytes);

/* cmdline.c: copies the line and splits it at spaces; returns argc and sets argv. No quoting, as in Solo5. */
int cmdline_init(const char *line, char ***argv);

/* start.c: the program headers of this unikernel. */
const Elf64_Phdr *program_headers(uint16_t *count);

/* thread.c: thread-local variables and the canary, if there are any; allocates. */
void thread_init(void);

/* stack_protector.c. Weak: NULL in a unikernel whose code was compiled without. */
__attribute__((weak)) _Noreturn void __stack_chk_fail(void);

/* manifest.c: checks the tender's copy and keeps its address. */
void manifest_init(const struct mft *manifest);

/* manifest.c: the attached entry of this name and type, and its handle; NULL if there is none. */
const struct mft_entry *manifest_entry(const char *name, uint32_t type, uint64_t *handle);

/* net_queue.c: a device's queues, if the tender grants the batch and the heap has space; else NULL, false. */
struct net_queue;
bool net_queue_open(struct net_device *device);
struct net_queue *net_queue_of(const struct net_device *device);
enum guest_result net_queue_write(struct net_queue *queue, const void *frame, size_t len);
enum guest_result net_queue_read(struct net_queue *queue, void *frame, size_t size, size_t *len);

/* Sends what is held; waits as poll_wait() does, or says that the hypercall is to. Weak: NULL in a unikernel
 * that has no network. */
__attribute__((weak)) void net_queues_flush(void);
__attribute__((weak)) bool net_queues_wait(uint64_t timeout_ns, uint64_t *ready_set, int *count);

#endif
