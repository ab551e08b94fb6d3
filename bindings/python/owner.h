/*
 * What a Vm and an Image of the library own: descriptors, mappings, a process, threads.
 *
 * An exception may come between any two instructions of Python, a KeyboardInterrupt for one. So nothing is
 * owned by a number on its way from a call to a variable: each call that obtains something puts it into a
 * structure that Python has already, and that is given back when Python's last reference to it goes.
 *
 * A handle is used by any thread at any time. A call takes a use of what it stands for, and close waits until
 * the last use is over; while a run is under way, close is refused. No lock is held while a guest runs.
 *
 * Answers: -ESTALE, it is closed; -ECHILD, this is a forked child of the process that made it, which has
 * copies of descriptors alone; -EBUSY, -EDEADLK and -EINPROGRESS, a run is under way: inside tn_run() on
 * another thread, on this one, on a thread of tn_start(); -EALREADY, it has run.
 */
#ifndef TENDER_OWNER_H
#define TENDER_OWNER_H

#include <stddef.h>
#include <stdint.h>

#include "owner_types.h"

struct cpu_state;
struct elf_image;
struct machine_error;
struct machine_plan;
struct vm;

void descriptor_close(struct descriptor *descriptor); /* idempotent */

/* ---- a VM */

int owned_vm_make(struct vm_handle *handle); /* an empty struct vm; 0 or -errno */
int owned_vm_close(struct vm_handle *handle);
void owned_vm_drop(struct vm_handle *handle); /* Python's last reference is gone */
/* What is owned goes to an empty handle; the answers of owned_vm_close(), and -ESTALE. */
int owned_vm_move(struct vm_handle *from, struct vm_handle *to);

/* While it is made or renewed, by the thread that does: NULL where it is closed. */
struct vm *owned_vm(struct vm_handle *handle);
/* Its machine, by name: 0, -errno, or -1 with *error filled. */
int owned_machine_open(struct vm_handle *handle, const char *name, const struct machine_plan *plan,
                       struct machine_error *error);
/* What was made of it is given back: it could not be finished, and another machine takes the VM. */
void owned_machine_close(struct vm_handle *handle);
/* The VM's from now on, closed behind the machine that uses them; *descriptor is -1 then. */
int owned_vm_add_device(struct vm_handle *handle, uint32_t number, struct descriptor *descriptor);
int owned_vm_add_console(struct vm_handle *handle, struct descriptor *descriptor);

/* KVM's, whose descriptors Python makes (kvm_machine.h): a descriptor or -errno; 0, -errno, or -1 with
 * *error filled. */
int owned_kvm_open(struct vm_handle *handle, const char *path);
int owned_kvm_create(struct vm_handle *handle, int fd, unsigned long request, int is_vcpu);
int owned_kvm_prepare(struct vm_handle *handle, struct machine_error *error);
int owned_kvm_finish(struct vm_handle *handle, gpa_t entry, struct machine_error *error);
/* What the guest will be told; until its first run it may be said again. */
int owned_write_boot_info(struct vm_handle *handle, const struct machine_plan *plan);

/* Before the first run: this machine will be reset. 0; -EOPNOTSUPP, it cannot be; or another -errno. */
int owned_keep(struct vm_handle *handle, int template_fd);
/* As it was before the first run, but for the boot info. 0 or -errno; it is then only to be closed. */
int owned_reset(struct vm_handle *handle);

/* The processor's state while nothing runs it, else -EBUSY; parts are CPU_... of cpu_state.h. -ENODATA: it is
 * not known. -EOPNOTSUPP: it cannot be set. */
int owned_cpu_state(struct vm_handle *handle, uint32_t parts, struct cpu_state *state);
int owned_cpu_state_set(struct vm_handle *handle, uint32_t parts, const struct cpu_state *state);

/* ---- its run. `turn` tells runs of one thread apart; it becomes 1 with this one. */

int owned_run_begin(struct vm_handle *handle, uint64_t limit_ns, int *turn);
/* Until Python must decide. Gives back held signals. 0, or an answer. */
int owned_run(struct vm_handle *handle, struct run_report *report);
/* The run is left by an exception; does nothing if it is not this turn's. */
void owned_run_leave(struct vm_handle *handle, const int *turn);
/* A thread that calls body(key), which runs it by owned_run(); *done is readable once that is over. *turn
 * becomes 1 if there is such a thread. */
int owned_start(struct vm_handle *handle, uint64_t limit_ns, uint64_t key, void (*body)(uint64_t),
                struct descriptor *done, int *turn);

/* Any thread, any time. */
int owned_stop(struct vm_handle *handle);

/* What outlives the descriptors of its interfaces is undone now: for a process that may be killed before the
 * VM is closed. Its guest gets no large frames any more. */
int owned_leave_headers(struct vm_handle *handle);
int owned_look(struct vm_handle *handle, struct vm_shared *copy);
int64_t owned_read(struct vm_handle *handle, uint64_t gpa, void *to, uint64_t len);
int64_t owned_write(struct vm_handle *handle, uint64_t gpa, const void *from, uint64_t len);
const void *owned_console(struct vm_handle *handle, const struct vm_event *event); /* NULL: closed */
int owned_pid(struct vm_handle *handle, int *pid);
int owned_isolation(struct vm_handle *handle, uint32_t *layers);

/* Behind an EVENT_NETWORK, on the run's thread: net_news() of device.h, or an answer. */
int owned_net_news(struct vm_handle *handle, uint32_t *next, char *text);

/* ---- an image's templates */

/* An empty template of `bytes` in *fd, which stays the handle's: 0 or -errno. */
int owned_templates_make(struct image_handle *handle, uint64_t bytes, int *fd);
/* A duplicate of the sealed template for VMs of this much memory; it is made if there is none. 0, or -errno
 * with *step. -ESTALE: closed. */
int owned_template(struct image_handle *handle, const struct elf_image *image, uint64_t mem_bytes,
                   int patched, struct descriptor *into, int *step);
void owned_templates_close(struct image_handle *handle); /* idempotent */

#endif
