/*
 * A virtual machine on /dev/kvm made in C, for the launcher: the calls and values of tender/backend/kvm.py
 * and kvm_cpu.py, in their order. One vCPU, one memory slot.
 */
#ifndef TENDER_MACHINE_H
#define TENDER_MACHINE_H

#include <stddef.h>
#include <stdint.h>

#include "vm.h"

struct kvm_run;

struct machine {
    int kvm_fd, vm_fd, vcpu_fd; /* -1: not open */
    struct kvm_run *run;        /* NULL: not mapped */
    size_t run_bytes;
    uint64_t tsc_hz;
};

struct machine_error {
    int os_error;
    int no_kvm; /* there is no usable KVM here; with 0 it is something that no other door would cure */
    char text[160];
};

/* Opens KVM and makes the VM, without memory. 0, or -1 with `error` filled and nothing left open. */
int machine_open(struct machine *machine, struct machine_error *error);

/* Gives it the VM's memory and a vCPU in the start state. 0, or -1 likewise. */
int machine_finish(struct machine *machine, const struct vm *vm, gpa_t entry, struct machine_error *error);

/* From now on KVM_RUN returns at once (EINTR). A signal handler may call it, and before the VM is made too.
 */
void machine_leave(struct machine *machine);

/* Idempotent. */
void machine_close(struct machine *machine);

#endif
