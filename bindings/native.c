/* The functions Python may call: thin, one line of thought each; the work is in core/ and kvm/. */
#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "close_later.h"
#include "console.h"
#include "device.h"
#include "ends.h"
#include "guest_cpu.h"
#include "patch.h"
#include "reset_kvm.h"
#include "ring.h"
#include "run_kvm.h"
#include "spawn.h"
#include "start_state.h"
#include "tsc.h"

int tn_ioctl_int(int fd, unsigned long request, unsigned long argument)
{
    int answer = ioctl(fd, request, argument);
    return answer < 0 ? -errno : answer;
}

int tn_ioctl_ptr(int fd, unsigned long request, void *argument)
{
    int answer = ioctl(fd, request, argument);
    return answer < 0 ? -errno : answer;
}

void *tn_map_shared(int fd, size_t bytes)
{
    void *address = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return address == MAP_FAILED ? NULL : address;
}

int tn_unmap(void *address, size_t bytes)
{
    return munmap(address, bytes) < 0 ? -errno : 0;
}

int tn_elf_parse_fd(int fd, struct elf_image *image, struct elf_error *error)
{
    struct byte_source source = byte_source_file(fd);
    return elf_image_parse(&source, image, error);
}

int tn_elf_parse_bytes(const void *bytes, size_t size, struct elf_image *image, struct elf_error *error)
{
    struct byte_source source = byte_source_memory(bytes, size);
    return elf_image_parse(&source, image, error);
}

int tn_elf_query_abi_fd(int fd, struct elf_image *image, struct elf_error *error)
{
    struct byte_source source = byte_source_file(fd);
    return elf_image_query_abi(&source, image, error);
}

int tn_elf_query_manifest_fd(int fd, struct elf_image *image, struct elf_error *error)
{
    struct byte_source source = byte_source_file(fd);
    return elf_image_query_manifest(&source, image, error);
}

int tn_elf_fits(const struct elf_image *image, uint64_t mem_bytes, struct elf_error *error)
{
    return elf_image_fits(image, mem_bytes, error);
}

uint64_t tn_template_bytes(const struct elf_image *image)
{
    return start_state_template_bytes(image);
}

int tn_template_load_fd(const struct elf_image *image, int fd, int template_fd, struct elf_error *error)
{
    struct byte_source source = byte_source_file(fd);
    return start_state_load_segments(image, &source, template_fd, error);
}

int tn_template_load_bytes(const struct elf_image *image, const void *bytes, size_t size, int template_fd,
                           struct elf_error *error)
{
    struct byte_source source = byte_source_memory(bytes, size);
    return start_state_load_segments(image, &source, template_fd, error);
}

int tn_template_write_tables(const struct elf_image *image, int template_fd, uint64_t mem_bytes)
{
    uint8_t *low = mmap(NULL, HVT_GUEST_MIN_GPA, PROT_READ | PROT_WRITE, MAP_SHARED, template_fd, 0);
    if (low == MAP_FAILED)
        return -errno;
    /* A copy of the template of another size has that one's. */
    memset(low + HVT_PD_GPA, 0, HVT_PT_GPA - HVT_PD_GPA);
    start_state_write_tables(low, mem_bytes, image->extensions);
    munmap(low, HVT_GUEST_MIN_GPA);
    return 0;
}

int tn_template_seal(int template_fd)
{
    int seals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
    return fcntl(template_fd, F_ADD_SEALS, seals) < 0 ? -errno : 0;
}

struct vm *tn_vm_new(void)
{
    struct vm *vm = calloc(1, sizeof *vm);
    if (!vm)
        return NULL;
    int error = vm_init(vm);
    if (error < 0) {
        free(vm);
        errno = -error;
        return NULL;
    }
    return vm;
}

void tn_vm_free(struct vm *vm)
{
    if (!vm)
        return;
    vm_release(vm);
    free(vm);
}

struct vm_shared *tn_vm_shared(struct vm *vm)
{
    return vm->shared;
}

int tn_vm_map(struct vm *vm, const struct elf_image *image, int template_fd, uint64_t mem_bytes,
              int ring_mode)
{
    vm->extensions = image->extensions;
    uint64_t named_bytes = mem_bytes - (ring_mode == RING_NONE ? 0 : HVT_RING_ROOM_BYTES);
    int error = guest_memory_map(&vm->memory, image, template_fd, start_state_template_bytes(image),
                                 named_bytes, mem_bytes);
    if (error == 0 && ring_mode != RING_NONE)
        ring_offer(vm, (struct hvt_net_ring *)(void *)(vm->memory.hva + named_bytes), (uint32_t)ring_mode);
    return error;
}

int tn_ring_mode(const struct elf_image *image, uint64_t mem_bytes, int wanted)
{
    return (int)ring_mode_for(image, mem_bytes, (uint32_t)wanted);
}

uint64_t tn_vm_memory_bytes(struct vm *vm)
{
    return vm->memory.bytes;
}

void *tn_vm_memory(struct vm *vm)
{
    return vm->memory.hva;
}

void tn_vm_write_boot_info(struct vm *vm, const struct elf_image *image, const struct mft *manifest,
                           uint64_t tsc_hz, const char *cmdline, size_t cmdline_bytes)
{
    start_state_write_boot_info(vm->memory.hva + HVT_BOOT_INFO_GPA, image, manifest, vm->memory.bytes, tsc_hz,
                                vm->ring.shared ? vm->memory.bytes : 0, cmdline, cmdline_bytes);
}

int tn_vm_attach_net(struct vm *vm, uint32_t handle, int fd, int offload)
{
    return vm_attach_net(vm, handle, fd, offload != 0);
}

int tn_vm_attach_block(struct vm *vm, uint32_t handle, int fd, uint64_t capacity, int read_only)
{
    return vm_attach_block(vm, handle, fd, capacity, read_only != 0);
}

int tn_net_open_tap(const char *name, int offload, uint32_t *mtu, struct device_error *error)
{
    return net_open_tap(name, offload != 0, mtu, error);
}

void tn_net_leave_header(int fd)
{
    net_leave_header(fd);
}

int tn_device_check_inherited(int fd, int is_net, struct device_error *error)
{
    return device_check_inherited(fd, is_net != 0, error);
}

int tn_net_duplicate(int fd, struct device_error *error)
{
    return net_duplicate(fd, error);
}

int tn_net_choose_mac(uint8_t *mac)
{
    return net_choose_mac(mac);
}

int tn_file_open(const char *path, int use, struct device_error *error)
{
    return file_open(path, (enum file_use)use, error);
}

int tn_file_check_output(int fd, struct device_error *error)
{
    return file_check_output(fd, error);
}

int tn_block_open(const char *path, int read_only, uint64_t *capacity, struct device_error *error)
{
    return block_open(path, read_only != 0, capacity, error);
}

int tn_block_duplicate(int fd, const char *shown, int read_only, uint64_t *capacity,
                       struct device_error *error)
{
    return block_duplicate(fd, shown, read_only != 0, capacity, error);
}

int tn_block_check_capacity(const char *name, uint64_t capacity, uint32_t sector_bytes,
                            struct device_error *error)
{
    return block_check_capacity(name, capacity, sector_bytes, error);
}

int tn_vm_set_console(struct vm *vm, int fd)
{
    return console_set(vm, fd);
}

void tn_close_later(int fd)
{
    close_later(fd);
}

void tn_kvm_filter_cpuid(struct kvm_cpuid2 *cpuid)
{
    guest_cpuid_filter(cpuid);
}

const void *tn_kvm_msr_filter(void)
{
    return guest_msr_filter();
}

int tn_kvm_set_memory(const struct vm *vm, int machine_fd)
{
    return kvm_set_memory(vm, machine_fd);
}

void tn_vm_run_kvm(struct vm *vm, int vcpu_fd, void *kvm_run)
{
    kvm_run_loop(vm, vcpu_fd, kvm_run);
}

int tn_vm_keep(struct vm *vm, int template_fd)
{
    return guest_memory_keep(&vm->memory, template_fd);
}

int tn_vm_reset(struct vm *vm)
{
    return vm_reset(vm);
}

struct kvm_fresh *tn_kvm_fresh(int kvm_fd, int vcpu_fd)
{
    return kvm_fresh_take(kvm_fd, vcpu_fd);
}

int tn_kvm_reset(const struct kvm_fresh *fresh, int vcpu_fd, void *kvm_run, const void *sregs,
                 const void *regs)
{
    return kvm_reset(fresh, vcpu_fd, kvm_run, sregs, regs);
}

const struct vm_event *tn_vm_event(struct vm *vm)
{
    return vm->event;
}

void tn_end_explain(const struct vm_event *event, int behind_kvm, int over_time, struct run_end *end)
{
    end_explain(event, behind_kvm != 0, over_time != 0, end);
}

const char *tn_setup_step_name(uint32_t step)
{
    return setup_step_name(step);
}

const char *tn_setup_step_hint(uint32_t step, int os_error)
{
    return setup_step_hint(step, os_error);
}

const char *tn_isolation_name(uint32_t index)
{
    return isolation_name(index);
}

const char *tn_isolation_cure(uint32_t index, int behind_kvm)
{
    return isolation_cure(index, behind_kvm);
}

const char *tn_system_call_name(uint32_t number, uint64_t arch)
{
    return system_call_name(number, arch);
}

struct sandbox *tn_sandbox_new(struct vm *vm)
{
    struct sandbox *sandbox = malloc(sizeof *sandbox);
    if (!sandbox)
        return NULL;
    int error = sandbox_init(sandbox, vm);
    if (error < 0) {
        free(sandbox);
        errno = -error;
        return NULL;
    }
    return sandbox;
}

void tn_sandbox_free(struct sandbox *sandbox)
{
    if (!sandbox)
        return;
    sandbox_release(sandbox);
    free(sandbox);
}

void tn_sandbox_write_boot_info(struct sandbox *sandbox, const struct elf_image *image,
                                const struct mft *manifest, uint64_t mem_bytes, uint64_t tsc_hz,
                                const char *cmdline, size_t cmdline_bytes)
{
    start_state_write_boot_info(sandbox_boot_info(sandbox), image, manifest, mem_bytes, tsc_hz, 0, cmdline,
                                cmdline_bytes);
}

int tn_sandbox_spawn(struct sandbox *sandbox, const struct elf_image *image, int template_fd,
                     uint64_t mem_bytes, const char *program, const char *name, int namespaces_wanted)
{
    return sandbox_spawn(sandbox, image, template_fd, mem_bytes, program, name, namespaces_wanted);
}

void tn_sandbox_run(struct sandbox *sandbox)
{
    sandbox_run(sandbox);
}

int64_t tn_sandbox_read(struct sandbox *sandbox, gpa_t gpa, void *to, uint64_t len)
{
    return sandbox_read(sandbox, gpa, to, len);
}

const void *tn_sandbox_console(struct sandbox *sandbox)
{
    return sandbox->mapping + SANDBOX_CONSOLE_OFFSET;
}

uint32_t tn_sandbox_isolation(struct sandbox *sandbox)
{
    return sandbox_isolation(sandbox);
}

int tn_sandbox_pid(struct sandbox *sandbox)
{
    return sandbox->pidfd >= 0 ? sandbox->pid : -1;
}

int64_t tn_template_patch(const struct elf_image *image, int template_fd)
{
    return patch_sites(image, template_fd);
}

int tn_template_unpatch(const struct elf_image *image, int template_fd)
{
    return unpatch_sites(image, template_fd);
}

void tn_tsc_sample(void)
{
    tsc_sample();
}

uint64_t tn_tsc_hz(void)
{
    return tsc_hz();
}

uint32_t tn_tsc_source(void)
{
    return tsc_hz_source();
}

void tn_vm_stop(struct vm *vm)
{
    vm_stop(vm);
}

void tn_signals_hold(void)
{
    vm_hold_signals();
}

void tn_signals_release(void)
{
    vm_release_signals();
}

void tn_vm_signals_elsewhere(struct vm *vm)
{
    vm->signals_elsewhere = true;
}

uint64_t tn_monotonic_ns(void)
{
    return monotonic_ns();
}
