/*
 * All that Python may call, as text that cffi reads too (between the marks; see cdef_extract.py).
 *
 * Functions return 0 or a count, or -errno; tender/native.py turns that into exceptions. Every call runs
 * with the GIL released.
 */
#ifndef TENDER_NATIVE_H
#define TENDER_NATIVE_H

#include <stddef.h>

#include "device_types.h"
#include "elf_image_types.h"
#include "end_types.h"
#include "vm_types.h"

struct kvm_cpuid2;
struct vm;
struct sandbox;
struct kvm_fresh;

/* <native:functions> */

/* Descriptors and ioctls: the kernel's answer, or -errno. */
int tn_ioctl_int(int fd, unsigned long request, unsigned long argument);
int tn_ioctl_ptr(int fd, unsigned long request, void *argument);
void *tn_map_shared(int fd, size_t bytes); /* NULL on failure, errno kept */
int tn_unmap(void *address, size_t bytes);

/* ELF: 0, or -1 with *error filled. */
int tn_elf_parse_fd(int fd, struct elf_image *image, struct elf_error *error);
int tn_elf_parse_bytes(const void *bytes, size_t size, struct elf_image *image, struct elf_error *error);
int tn_elf_query_abi_fd(int fd, struct elf_image *image, struct elf_error *error);
int tn_elf_query_manifest_fd(int fd, struct elf_image *image, struct elf_error *error);
int tn_elf_fits(const struct elf_image *image, uint64_t mem_bytes, struct elf_error *error);

/* Start state: template_fd is a memfd of tn_template_bytes(). */
uint64_t tn_template_bytes(const struct elf_image *image);
int tn_template_load_fd(const struct elf_image *image, int fd, int template_fd, struct elf_error *error);
int tn_template_load_bytes(const struct elf_image *image, const void *bytes, size_t size, int template_fd,
                           struct elf_error *error);
int tn_template_write_tables(const struct elf_image *image, int template_fd, uint64_t mem_bytes);
int tn_template_seal(int template_fd); /* nobody writes to it, shrinks it or grows it any more */

/* A VM's memory, devices and console. Free with tn_vm_free(), which also unmaps; NULL if there is no memory.
 */
struct vm *tn_vm_new(void);
void tn_vm_free(struct vm *vm);
struct vm_shared *tn_vm_shared(struct vm *vm);
/* ring_mode: enum vm_ring_mode; a ring lies in the last HVT_RING_ROOM_BYTES, which are not the guest's then.
 */
int tn_vm_map(struct vm *vm, const struct elf_image *image, int template_fd, uint64_t mem_bytes,
              int ring_mode);
int tn_ring_mode(const struct elf_image *image, uint64_t mem_bytes, int wanted); /* core/ring.h */
void *tn_vm_memory(struct vm *vm);
uint64_t tn_vm_memory_bytes(struct vm *vm); /* the guest's */
void tn_vm_write_boot_info(struct vm *vm, const struct elf_image *image, const struct mft *manifest,
                           uint64_t tsc_hz, const char *cmdline, size_t cmdline_bytes);
int tn_vm_attach_net(struct vm *vm, uint32_t handle, int fd, int offload);
int tn_vm_attach_block(struct vm *vm, uint32_t handle, int fd, uint64_t capacity, int read_only);
int tn_vm_set_console(struct vm *vm, int fd);

/* Opening devices (devices/device.h): a descriptor that is Python's to close, or 0; -1 with *error filled. */
int tn_net_open_tap(const char *name, int offload, uint32_t *mtu, struct device_error *error);
void tn_net_leave_header(int fd);
int tn_file_open(const char *path, int use, struct device_error *error); /* enum file_use */
int tn_file_check_output(int fd, struct device_error *error);
int tn_device_check_inherited(int fd, int is_net, struct device_error *error);
int tn_net_duplicate(int fd, struct device_error *error);
int tn_net_choose_mac(uint8_t *mac); /* -errno */
int tn_block_open(const char *path, int read_only, uint64_t *capacity, struct device_error *error);
int tn_block_duplicate(int fd, const char *shown, int read_only, uint64_t *capacity,
                       struct device_error *error);
int tn_block_check_capacity(const char *name, uint64_t capacity, uint32_t sector_bytes,
                            struct device_error *error);
void tn_close_later(int fd);                                /* see kvm/close_later.h */
int tn_kvm_set_memory(const struct vm *vm, int machine_fd); /* tn_vm_map()'s, as slot 0 */

/* What a guest on KVM may see and touch of its processor; see kvm/guest_cpu.h. */
void tn_kvm_filter_cpuid(struct kvm_cpuid2 *cpuid);
const void *tn_kvm_msr_filter(void); /* the argument of KVM_X86_SET_MSR_FILTER */

/* Runs until Python must decide; tn_vm_shared()->event says what. One thread at a time. */
void tn_vm_run_kvm(struct vm *vm, int vcpu_fd, void *kvm_run);

/*
 * For the next guest of the same image: memory, counters, events and a stop asked for as before the first
 * run; then the vCPU, from what tn_kvm_fresh() took of one that had not run (NULL with errno kept; never
 * freed by a VM). Boot info is to be written again. After an error the VM is fit only to be freed.
 */
int tn_vm_keep(struct vm *vm, int template_fd); /* once, before the first run */
int tn_vm_reset(struct vm *vm);
struct kvm_fresh *tn_kvm_fresh(int kvm_fd, int vcpu_fd);
int tn_kvm_reset(const struct kvm_fresh *fresh, int vcpu_fd, void *kvm_run, const void *sregs,
                 const void *regs);

/* What the last run call ended with. The VM's own: of a sandboxed guest's shared memory a checked copy. */
const struct vm_event *tn_vm_event(struct vm *vm);

/* How a run ended, in words (ends/ends.h). */
void tn_end_explain(const struct vm_event *event, int behind_kvm, int over_time, struct run_end *end);
const char *tn_setup_step_name(uint32_t step);
const char *tn_setup_step_hint(uint32_t step, int os_error);
const char *tn_isolation_name(uint32_t index);
const char *tn_isolation_cure(uint32_t index, int behind_kvm);
const char *tn_system_call_name(uint32_t number, uint64_t arch);

/*
 * The sandbox: a VM whose guest runs in a process of its own, tender-sandbox. NULL with errno kept, or to be
 * freed, which kills and reaps it. tn_sandbox_spawn() wants boot info, devices and console in place.
 */
struct sandbox *tn_sandbox_new(struct vm *vm);
void tn_sandbox_free(struct sandbox *sandbox);
void tn_sandbox_write_boot_info(struct sandbox *sandbox, const struct elf_image *image,
                                const struct mft *manifest, uint64_t mem_bytes, uint64_t tsc_hz,
                                const char *cmdline, size_t cmdline_bytes);
int tn_sandbox_spawn(struct sandbox *sandbox, const struct elf_image *image, int template_fd,
                     uint64_t mem_bytes, const char *program, const char *name, int namespaces_wanted);
void tn_sandbox_run(struct sandbox *sandbox);
int64_t tn_sandbox_read(struct sandbox *sandbox, gpa_t gpa, void *to, uint64_t len);
const void *tn_sandbox_console(struct sandbox *sandbox); /* the bytes of an EVENT_CONSOLE */
uint32_t tn_sandbox_isolation(struct sandbox *sandbox);
int tn_sandbox_pid(struct sandbox *sandbox); /* -1 once it is reaped */

/* Makes the template one of the sandbox's: hypercall sites become jumps. How many were, or -errno. */
int64_t tn_template_patch(const struct elf_image *image, int template_fd);
int tn_template_unpatch(const struct elf_image *image, int template_fd); /* and back */

/* The time stamp counter's frequency; see sandbox/tsc.h. */
void tn_tsc_sample(void); /* early, so that a frequency that has to be measured need not be waited for */
uint64_t tn_tsc_hz(void);
uint32_t tn_tsc_source(void); /* enum tsc_source; 0 before the first question */

/* Asks a running VM to stop, and one that is not running not to start. Any thread, any time, no waiting. */
void tn_vm_stop(struct vm *vm);

/*
 * Around the start of a helper thread, on the thread that starts it: signals of this process are not for a
 * thread that waits beside a run, for the kernel would then wake that one and leave the guest running.
 */
void tn_signals_hold(void);
void tn_signals_release(void);

/* The thread that will run this VM is not one whose run a signal is to end. Until tn_vm_reset(). */
void tn_vm_signals_elsewhere(struct vm *vm);

uint64_t tn_monotonic_ns(void);

/* </native:functions> */

#endif
