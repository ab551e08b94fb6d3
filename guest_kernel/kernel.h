/*
 * Declarations that the files of the guest kernel share and an application does not need.
 * Rule: only start.c calls the *_init() functions, each once, in the order that is written there.
 */
#ifndef TENDER_KERNEL_H
#define TENDER_KERNEL_H

#include <elf.h>

#include "gate.h"
#include "tender/guest.h"

/*
 * start.c: _start (boot_x86_64.S) calls it on the boot stack, with the boot info that the tender
 * wrote.
 */
_Noreturn void guest_start(const struct hvt_boot_info *boot);

/* trap.c: loads our GDT, TSS and IDT. Before this call a fault becomes a triple fault. */
void trap_init(void);

/* clock.c: stores the frequency of the time stamp counter, and starts the monotonic clock at 0. */
void clock_init(uint64_t tsc_hz);

/* memory.c: the heap is [from, to), both multiples of 16. */
void memory_init(uintptr_t from, uintptr_t to, uint64_t mem_bytes);

/*
 * cmdline.c: copies the line and splits it at spaces. Returns argc and sets argv. As in Solo5,
 * there is no quoting.
 */
int cmdline_init(const char *line, char ***argv);

/* start.c: the program headers of this unikernel. */
const Elf64_Phdr *program_headers(uint16_t *count);

/*
 * thread.c: sets up thread-local variables and the stack protector's canary, if the unikernel uses
 * them. It allocates from the heap.
 */
void thread_init(void);

/*
 * stack_protector.c. Weak: it is NULL in a unikernel that was compiled without -fstack-protector.
 */
__attribute__((weak)) _Noreturn void __stack_chk_fail(void);

/* manifest.c: checks the manifest that the tender filled in, and stores its address. */
void manifest_init(const struct mft *manifest);

/*
 * manifest.c: returns the attached device's entry of this name and type, and stores its handle.
 * NULL if there is none.
 */
const struct mft_entry *manifest_entry(const char *name, uint32_t type, uint64_t *handle);

/*
 * net_queue.c: the queues of a device. net_queue_open() returns false if the tender does not grant
 * the batch or the heap has no space. net_queue_of() returns NULL if the device has no queues.
 */
struct net_queue;
bool net_queue_open(struct net_device *device);
struct net_queue *net_queue_of(const struct net_device *device);
enum guest_result net_queue_write(struct net_queue *queue, const void *frame, size_t len);
enum guest_result net_queue_read(struct net_queue *queue, void *frame, size_t size, size_t *len);

/*
 * net_queues_flush() sends all held frames. net_queues_wait() waits as poll_wait() does, or returns
 * false: the caller must then wait with the hypercall. Weak: both are NULL in a unikernel that does
 * not use the network.
 */
__attribute__((weak)) void net_queues_flush(void);
__attribute__((weak)) bool net_queues_wait(uint64_t timeout_ns, uint64_t *ready_set, int *count);

#endif
