/*
 * Everything that Python may call, as text that cffi also reads (between the marks; see cdef_extract.py).
 *
 * Functions return 0 or a count, or -errno; tender/native.py turns errors into exceptions. Every call
 * runs with the GIL released.
 */
#ifndef TENDER_NATIVE_H
#define TENDER_NATIVE_H

#include <stdbool.h>
#include <stddef.h>

#include "cpu_state.h"
#include "device_types.h"
#include "elf_image_types.h"
#include "exit_report_types.h"
#include "machine_types.h"
#include "owner_types.h"
#include "vm_types.h"

struct kvm_cpuid2;
struct vm;

/* Python's names for functions that have another name in C. native.c includes both declarations, so the
 * compiler compares them. */
#define tn_elf_fits                 elf_image_fits
#define tn_template_bytes           start_state_template_bytes
#define tn_kvm_cpuid                kvm_machine_cpuid
#define tn_device_check_inherited   device_check_inherited
#define tn_file_check_output        file_check_output
#define tn_terminal_without_waiting terminal_without_waiting
#define tn_vm_set_console           console_set
#define tn_setup_step_name          setup_step_name
#define tn_exit_reason_name         exit_reason_name
#define tn_says                     says_by_name
#define tn_setup_step_hint          setup_step_hint
#define tn_hypercall_name           hypercall_name
#define tn_feature_name             feature_name
#define tn_device_types             device_types
#define tn_device_name              device_name
#define tn_device_word              device_word
#define tn_isolation_name           isolation_name
#define tn_system_call_name         system_call_name
#define tn_tsc_sample               tsc_sample
#define tn_tsc_hz                   tsc_hz
#define tn_signals_hold             vm_hold_signals
#define tn_monotonic_ns             monotonic_ns

/* <native:functions> */

/* The kernel's answer, or -errno. */
int tn_ioctl_int(int fd, unsigned long request, unsigned long argument);

/* ELF files: 0, or -1 with *error filled. */
int tn_elf_parse_fd(int fd, struct elf_image *image, struct elf_error *error);
int tn_elf_parse_bytes(const void *bytes, size_t size, struct elf_image *image, struct elf_error *error);
int tn_elf_query_abi_fd(int fd, struct elf_image *image, struct elf_error *error);
int tn_elf_query_manifest_fd(int fd, struct elf_image *image, struct elf_error *error);
int tn_elf_fits(const struct elf_image *image, uint64_t mem_bytes, struct elf_error *error);

/*
 * An image's templates (owner.h). load: 0; -errno if no memory file of tn_template_bytes() can be made; 1
 * with *error filled. tn_image_template() returns the template for VMs with this much memory; -errno with
 * *step, TEMPLATE_STEP_...
 */
uint64_t tn_template_bytes(const struct elf_image *image);
int tn_image_load_fd(struct image_handle *handle, const struct elf_image *image, int fd,
                     struct elf_error *error);
int tn_image_load_bytes(struct image_handle *handle, const struct elf_image *image, const void *bytes,
                        size_t size, struct elf_error *error);
int tn_image_template(struct image_handle *handle, const struct elf_image *image, uint64_t mem_bytes,
                      int patched, struct descriptor *into, int *step);
void tn_image_close(struct image_handle *handle); /* idempotent; also when Python's last reference goes */

void tn_descriptor_close(struct descriptor *descriptor); /* idempotent */

/*
 * What a Vm owns. owner.h says which thread may call what and when, and what is returned if the VM's
 * state does not allow a call.
 */
int tn_vm_make(struct vm_handle *handle); /* an empty struct vm; 0 or -errno */
int tn_vm_close(struct vm_handle *handle);
void tn_vm_drop(struct vm_handle *handle); /* call it when Python's last reference is gone */
/* Moves what is owned to an empty handle. Returns the same errors as tn_vm_close(), and -ESTALE. */
int tn_vm_move(struct vm_handle *from, struct vm_handle *to);

/* The struct vm, for the thread that makes or renews it, while it does so. NULL: the handle is closed. */
struct vm *tn_vm(struct vm_handle *handle);
/* Attaches device `number` (devices/device.h); it is closed after the machine that uses it. 0, -errno, or -1
 * with *error filled. */
int tn_vm_attach(struct vm_handle *handle, uint32_t number, struct device_settings *settings,
                 const struct elf_image *image, int ring_mode, struct mft_entry *entry,
                 struct device_error *error);
/* The VM owns the descriptor from now on, and closes it after the machine that uses it; *descriptor becomes
 * -1. */
int tn_vm_add_console(struct vm_handle *handle, struct descriptor *descriptor);

/* Which machine it gets, or probably will get (vm/lifecycle.h); `backend` is a name, or "auto". */
int tn_ring_mode(const struct elf_image *image, uint64_t mem_bytes, int wanted, const char *backend);
const char *tn_machine_choose(struct machine_choice *choice, const char *backend,
                              struct machine_error *error);
/* Opens that machine, by name (machine/machine.h), once console and devices are in place: 0, -errno, or -1
 * with *error filled. */
int tn_machine_open(struct vm_handle *handle, const char *name, const struct machine_plan *plan,
                    struct machine_error *error);
const char *tn_machine_name(uint32_t index); /* in the order in which "auto" tries them; NULL past the last */
/* Writes what the guest reads at its start. It may be written again until the first run. */
int tn_write_boot_info(struct vm_handle *handle, const struct machine_plan *plan);

/* KVM's descriptors, which Python makes before it opens the machine (kvm_ops.h): a descriptor, or -errno. */
int tn_kvm_open(struct vm_handle *handle, const char *path);
int tn_kvm_create_vm(struct vm_handle *handle, unsigned long request);
struct kvm_cpuid2 *tn_kvm_cpuid(void); /* what this process's guests see; NULL before the first guest */

/* Begins its run. `turn` distinguishes runs on one thread; it becomes 1 for this run. */
int tn_run_begin(struct vm_handle *handle, uint64_t limit_ns, int *turn);
/* Runs until Python must decide. Releases held signals. 0, or an error of owner.h. */
int tn_run(struct vm_handle *handle, struct run_report *report);
/* Leaves the run and reports its end. After an exception, the run ends here. Does nothing if the run does not
 * belong to this turn. */
void tn_run_leave(struct vm_handle *handle, const int *turn);
const void *tn_run_console(struct vm_handle *handle, const struct vm_event *event); /* an EVENT_CONSOLE's */
/* Makes a thread that calls body(key), which runs the VM by tn_run(). *done becomes readable after that.
 * *turn becomes 1 if the thread was made. */
int tn_start(struct vm_handle *handle, uint64_t limit_ns, uint64_t key, void (*body)(uint64_t),
             struct descriptor *done, int *turn);
/* *done becomes readable at the end of the run: tn_run_leave() or the thread of tn_start() reports it. It may
 * be requested before, during and after the run. 0, or an error of owner.h. */
int tn_done(struct vm_handle *handle, struct descriptor *done);
/* Call it after an EVENT_NETWORK, on the run's thread: 1, and a line in `text` of NET_NEWS_BYTES; 0 if there
 * are no more lines; -errno. *next must be 0 at first. */
int tn_net_news(struct vm_handle *handle, uint32_t *next, char *text);

/* Any thread may call the following functions, at any time. */
int tn_stop(struct vm_handle *handle);
/* Undoes now what outlives the descriptors of the VM's interfaces, for a process that may be killed
 * before the VM is closed. The guest gets no large frames any more. */
int tn_leave_headers(struct vm_handle *handle);
int tn_look(struct vm_handle *handle, struct vm_shared *copy);
int64_t tn_read(struct vm_handle *handle, gpa_t gpa, void *to, uint64_t len);
int64_t tn_write(struct vm_handle *handle, gpa_t gpa, const void *from, uint64_t len);
int tn_pid(struct vm_handle *handle, int *pid);
int tn_isolation(struct vm_handle *handle, uint32_t *layers);

int tn_vm_set_console(struct vm *vm, int fd);

/* Opening devices and files (devices/device.h): 0, or -1 with *error filled. `image` NULL: it is not
 * known. */
int tn_device_open(struct device_settings *settings, const struct elf_image *image, struct mft_entry *entry,
                   struct device_error *error, struct descriptor *into);
int tn_file_open(const char *path, int use, struct device_error *error,
                 struct descriptor *into); /* enum file_use */
int tn_file_check_output(int fd, struct device_error *error);
int tn_terminal_without_waiting(int fd); /* devices/console/console.h */
/* Reads an option's value (devices/device_words.h): 1, or 0 if the value is not valid. */
int tn_device_configure(uint32_t type, struct device_settings *settings, const char *option,
                        const char *value);
int tn_device_check_inherited(uint32_t type, int fd, struct device_error *error);

/*
 * For the next guest of the same image: memory, counters, events, a stop request and the vCPU return to their
 * state before the first run. Boot info must be written again. keeps: whether its machine can do this. keep:
 * call it once, before the first run. reset: after an error the VM can only be closed.
 */
int tn_vm_keeps(struct vm_handle *handle);
int tn_vm_keep(struct vm_handle *handle, int template_fd);
int tn_vm_reset(struct vm_handle *handle);

/* The processor's state while nothing runs it, else -EBUSY; parts are CPU_... of cpu_state.h. -ENODATA: the
 * state is not known. -EOPNOTSUPP: the state cannot be set. */
int tn_cpu_state(struct vm_handle *handle, uint32_t parts, struct cpu_state *state);
int tn_cpu_state_set(struct vm_handle *handle, uint32_t parts, const struct cpu_state *state);

/* The names of the rows of abi/hypercalls.def; NULL: there is no such row. */
const char *tn_hypercall_name(uint32_t number);
const char *tn_feature_name(uint32_t bit);
uint32_t tn_device_types(void);
const char *tn_device_name(uint32_t type);
const char *tn_device_word(uint32_t type);

/* How a run ended, in words (vm/exit_report.h). */
int tn_exit_report_fill(const struct vm_event *event, const char *machine, int over_time, int told,
                        struct exit_report *report);
const char *tn_setup_step_name(uint32_t step);
const char *tn_exit_reason_name(uint32_t end, int32_t *status);
const char *tn_says(const char *name);
const char *tn_setup_step_hint(uint32_t step, int os_error, enum told told);
const char *tn_isolation_name(uint32_t index);
const char *tn_isolation_cure(uint32_t index, const char *machine, int told);
const char *tn_system_call_name(uint32_t number, uint64_t arch);

/* The time stamp counter's frequency; see arch/x86_64/tsc.h. */
void tn_tsc_sample(void); /* call it early, so that a frequency that must be measured causes no wait */
uint64_t tn_tsc_hz(void);
uint64_t tn_tsc(void); /* the counter itself */

/* Call it before tn_run(), on the same thread: a signal that comes from now on ends the run's first wait, and
 * is not lost between Python's last check and that wait. tn_run() and tn_run_leave() let signals in again. */
void tn_signals_hold(void);

uint64_t tn_monotonic_ns(void);

/*
 * The kernel's calls for a debugger (tender/debug/ptrace.py). Each returns the kernel's answer, or -errno.
 */
/* ptrace(2). PTRACE_PEEK... puts the word where `data` points. */
int64_t tn_ptrace(int request, int tid, uint64_t address, uint64_t data);
int64_t tn_ptrace_regset(int request, int tid, unsigned type, void *data,
                         size_t size); /* bytes transferred */
/* wait4(2): a thread's id, or 0 with WNOHANG. */
int tn_wait(int tid, int options, int *status);
/* process_vm_readv(2), process_vm_writev(2): bytes, fewer if memory ends. */
int64_t tn_process_read(int pid, uint64_t address, void *to, size_t size);
int64_t tn_process_write(int pid, uint64_t address, const void *from, size_t size);

/* </native:functions> */

#endif
