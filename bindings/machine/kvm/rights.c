/*
 * If an attacker breaks out of the guest into the handlers, there is little left to ask the kernel for.
 *
 * If a host refuses one of these calls (an older kernel, an inherited seccomp filter), only that isolation
 * layer is missing: the guest is inside KVM in any case.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "death_signal.h"
#include "device_ops.h"
#include "disk_guard.h"
#include "landlock.h"
#include "layers.h"
#include "rights.h"
#include "runner.h"

/* Placeholders in the filter for numbers that are known only when it is installed. No descriptor and no
 * process has these numbers. */
#define TEARDOWN_SOCKET_FD 0xfffff001u
#define TEARDOWN_LOCK_FD   0xfffff002u
#define OWN_PROCESS        0xfffff003u

#define GUARDED 0x0d15c0deu /* not a verdict of the kernel: install() puts the deciding code in its place */

/* Not verdicts of the kernel either: for guests that have a device of one of the types, one bit per type. */
#define ALLOW_FOR(types)  (0x0d160000u | (types))
#define GUARD_FOR(types)  (0x0d170000u | (types))
#define FOR_WHAT(verdict) ((verdict) & 0xffff0000u)
#define FOR_TYPES         0xffffu
_Static_assert(DEVICE_TYPES <= 16, "each has its bit");

#include "kvm_filter.inc"

_Static_assert(sizeof kvm_filter_rules <= sizeof kvm_filter_inherited_rules &&
                   sizeof kvm_filter_device_rules <= sizeof kvm_filter_inherited_rules,
               "any of them fits");

/* Denies everything that the kernel can deny. Open descriptors stay usable. */
static uint32_t deny_by_landlock(void)
{
    struct landlock_denial denial;
    long abi = syscall(CALL_LANDLOCK_CREATE_RULESET, NULL, 0, LANDLOCK_ASK_ABI);
    if (abi < 1)
        return 0;
    uint64_t bytes = landlock_denial(abi, &denial);
    long fd = syscall(CALL_LANDLOCK_CREATE_RULESET, &denial, bytes, 0);
    if (fd < 0)
        return 0;
    long refused = syscall(CALL_LANDLOCK_RESTRICT_SELF, fd, 0);
    close((int)fd);
    return refused < 0 ? 0 : ISOLATION_LANDLOCK;
}

/* For this thread, while it is the only one. The C library's functions would look for other threads. */
static bool change_to(uint32_t id)
{
    return syscall(SYS_setresgid, id, id, id) == 0 && syscall(SYS_setresuid, id, id, id) == 0;
}

static uint32_t give_up_root(void)
{
    uid_t real, effective, saved;
    if (getresuid(&real, &effective, &saved) < 0)
        return 0;
    if (real && effective && saved)
        return ISOLATION_UID;
    const struct death_signal death = death_signal_now();
    if (syscall(SYS_setgroups, 0, NULL) < 0)
        return 0;
    const bool changed = change_to(unprivileged_id(getpid())) || change_to(OVERFLOW_ID);
    death_signal_keep(&death);
    return changed ? ISOLATION_UID : 0;
}

static uint32_t give_up_capabilities(void)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {{0, 0, 0}};
    return syscall(SYS_capset, &head, none) == 0 ? ISOLATION_CAPABILITIES : 0; /* also clears ambient ones */
}

static void empty_bounding_set(void)
{
    for (unsigned long capability = 0; prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0; capability++)
        ;
}

void give_up_file_growth(const struct vm *vm, const struct confinement *keeps)
{
    const bool into_file = keeps->outputs[0].is_file || keeps->outputs[1].is_file;
    const uint64_t bytes = vm_largest_file(vm);
    const struct rlimit both = {bytes, bytes};
    struct rlimit now;
    if (bytes != UINT64_MAX && !into_file && getrlimit(RLIMIT_FSIZE, &now) == 0 && now.rlim_cur > bytes)
        (void)setrlimit(RLIMIT_FSIZE, &both);
}

uint32_t give_up_rights(void)
{
    empty_bounding_set(); /* first, because it needs a capability. If it is refused, no_new_privs has the same
                             effect */
    uint32_t layers = give_up_root();
    layers |= give_up_capabilities();
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return layers & ~(uint32_t)ISOLATION_CAPABILITIES; /* a set-uid program would bring them back */
    return layers | deny_by_landlock();
}

/* Without a socket the placeholders stay: they match no descriptor. */
static void fill_in(struct sock_filter *code, size_t count, const struct deferred_teardown *teardown)
{
    const uint32_t process = (uint32_t)getpid();
    for (size_t i = 0; i < count; i++) {
        if (code[i].k == OWN_PROCESS)
            code[i].k = process;
        else if (code[i].k == TEARDOWN_SOCKET_FD && teardown->ours >= 0)
            code[i].k = (uint32_t)teardown->ours;
        else if (code[i].k == TEARDOWN_LOCK_FD && teardown->ours >= 0)
            code[i].k = (uint32_t)teardown->lock_fd;
    }
}

#define LOAD(member)      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)offsetof(struct seccomp_data, member))
#define IF(value, t, f)   BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), (t), (f))
#define ANSWER(verdict)   BPF_STMT(BPF_RET | BPF_K, (verdict))
#define WRITABLE_MAX      (MFT_MAX_ENTRIES + 5 + DEVICE_TYPES)
#define GUARD_LENGTH      (2 * WRITABLE_MAX + 4 + DISK_GUARD_LENGTH)
#define PLACE(code, what) ((code) = (struct sock_filter)what)

/* The descriptors that this process writes at their own file position. */
struct writable {
    int fds[WRITABLE_MAX];
    uint32_t count;
};

static void may_write(struct writable *writable, int fd)
{
    if (fd >= 0)
        writable->fds[writable->count++] = fd;
}

static struct writable find_writable(const struct vm *vm, const struct confinement *keeps)
{
    struct writable found = {.count = 0};
    for (uint32_t i = 0; i < vm->device_end; i++)
        if (vm->devices[i].type && !device_has_places(&vm->devices[i]))
            may_write(&found, vm->devices[i].fd);
    may_write(&found, vm->console.fd);
    may_write(&found, keeps->outputs[0].fd);
    may_write(&found, keeps->outputs[1].fd);
    may_write(&found, keeps->observer_fd);
    may_write(&found, vm->stop_fd);
    for (uint32_t type = 0; type < DEVICE_TYPES; type++)
        if (device_kinds[type] && device_kinds[type]->written_fd)
            may_write(&found, device_kinds[type]->written_fd(vm));
    return found;
}

/* Builds the code for guarded calls, which follows the filter's rules. pwrite64 is decided by
 * disk_guard.h. The other calls write at the descriptor's own position, and only to the descriptors
 * above: a disk may have more descriptors than the guest's, such as the one that was passed in for it,
 * and the caller may have left any file open. */
static uint32_t guard_build(struct sock_filter *code, const struct vm *vm, const struct confinement *keeps)
{
    const struct writable writable = find_writable(vm, keeps);
    uint32_t n = 0;
    PLACE(code[n++], LOAD(nr));
    const uint32_t to_pwrite = n++;
    PLACE(code[n++], LOAD(args[0]));
    for (uint32_t i = 0; i < writable.count; i++) {
        PLACE(code[n++], IF((uint32_t)writable.fds[i], 0, 1));
        PLACE(code[n++], ANSWER(SECCOMP_RET_ALLOW));
    }
    PLACE(code[n++], ANSWER(SECCOMP_RET_KILL_PROCESS));
    PLACE(code[to_pwrite], IF(__NR_pwrite64, (uint8_t)(n - to_pwrite - 1), 0));
    return n + disk_guard_build(code + n, vm);
}
_Static_assert(2 * WRITABLE_MAX + 2 <= UINT8_MAX, "a conditional jump reaches past it");

static bool has_places(const struct vm *vm)
{
    for (uint32_t i = 0; i < vm->device_end; i++)
        if (device_has_places(&vm->devices[i]))
            return true;
    return false;
}

/* Turns verdicts for some kinds of devices into plain ones. Stand-ins need the calls of all kinds. */
static void resolve_kinds(struct sock_filter *code, size_t count, const struct vm *vm, bool replaces_calls)
{
    uint32_t types = replaces_calls ? FOR_TYPES : 0;
    for (uint32_t i = 0; i < vm->device_end; i++)
        types |= 1u << vm->devices[i].type; /* an empty entry has type 0, which no kind of device has */
    for (size_t i = 0; i < count; i++) {
        const uint32_t what = FOR_WHAT(code[i].k);
        if (code[i].code == (BPF_RET | BPF_K) && (what == ALLOW_FOR(0) || what == GUARD_FOR(0)))
            code[i].k = !(code[i].k & FOR_TYPES & types) ? SECCOMP_RET_KILL_PROCESS
                        : what == GUARD_FOR(0)           ? GUARDED
                                                         : SECCOMP_RET_ALLOW;
    }
}

static bool install(const struct sock_filter *rules, size_t count, const struct deferred_teardown *teardown,
                    const struct vm *vm, const struct confinement *keeps)
{
    struct sock_filter code[sizeof kvm_filter_inherited_rules / sizeof *rules + GUARD_LENGTH];
    memcpy(code, rules, count * sizeof *code);
    fill_in(code, count, teardown);
    resolve_kinds(code, count, vm, keeps->replaces_calls);
    const uint32_t guard = has_places(vm) ? guard_build(code + count, vm, keeps) : 0;
    for (size_t i = 0; i < count; i++)
        if (code[i].code == (BPF_RET | BPF_K) && code[i].k == GUARDED) {
            if (guard)
                PLACE(code[i], BPF_STMT(BPF_JMP | BPF_JA, (uint32_t)(count - i - 1)));
            else
                PLACE(code[i], ANSWER(SECCOMP_RET_ALLOW));
        }
    const struct sock_fprog filter = {(unsigned short)(count + guard), code};
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter) == 0;
}

#define INSTALL(rules) install(rules, sizeof(rules) / sizeof *(rules), teardown, vm, keeps)

uint32_t give_up_calls(const struct deferred_teardown *teardown, const struct vm *vm,
                       const struct confinement *keeps)
{
    bool installed = keeps->replaces_calls ? INSTALL(kvm_filter_inherited_rules)
                     : vm->device_end      ? INSTALL(kvm_filter_device_rules)
                                           : INSTALL(kvm_filter_rules);
    return installed ? ISOLATION_SECCOMP_FILTER : 0;
}
