/*
 * Gives up rights, as the last step before the guest: limits, capabilities, the filter. child.c has already
 * provided an empty root and closed every descriptor that is not the guest's; the code that made the process
 * has chosen its namespaces.
 */
#include <errno.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "disk_guard.h"
#include "filter.h"
#include "landlock.h"
#include "program.h"
#include "syscalls.h"

static void limit(int resource, uint64_t value)
{
    const struct rlimit both = {value, value};
    step_check(STEP_LIMITS, system_call(0, (uint64_t)resource, (uint64_t)&both, 0, 0, 0, SYS_prlimit64));
}

/* A lower limit stays: the kernel refuses to raise it. */
static void limit_files(uint64_t bytes)
{
    const struct rlimit both = {bytes, bytes};
    int64_t answer = system_call(0, RLIMIT_FSIZE, (uint64_t)&both, 0, 0, 0, SYS_prlimit64);
    if (answer != -EPERM)
        step_check(STEP_LIMITS, answer);
}

static void drop_capabilities(void)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {{0, 0, 0}};
    step_check(STEP_RIGHTS, system_call((uint64_t)&head, (uint64_t)none, 0, 0, 0, 0, SYS_capset));
}

static void install(struct sock_filter *code, uint32_t length)
{
    const struct sock_fprog program = {(unsigned short)length, code};
    step_check(STEP_FILTER,
               system_call(SECCOMP_SET_MODE_FILTER, 0, (uint64_t)&program, 0, 0, 0, SYS_seccomp));
}

/* Denies everything that the kernel can deny. 0 if the kernel has no Landlock, or refuses it. */
static uint32_t deny_by_landlock(void)
{
    struct landlock_denial denial;
    int64_t abi = system_call(0, 0, LANDLOCK_ASK_ABI, 0, 0, 0, CALL_LANDLOCK_CREATE_RULESET);
    if (abi < 1)
        return 0;
    uint64_t bytes = landlock_denial(abi, &denial);
    int64_t fd = system_call((uint64_t)&denial, bytes, 0, 0, 0, 0, CALL_LANDLOCK_CREATE_RULESET);
    if (fd < 0)
        return 0;
    int64_t refused = system_call((uint64_t)fd, 0, 0, 0, 0, 0, CALL_LANDLOCK_RESTRICT_SELF);
    step_check(STEP_RIGHTS, system_call((uint64_t)fd, 0, 0, 0, 0, 0, SYS_close));
    return refused < 0 ? 0 : ISOLATION_LANDLOCK;
}

uint32_t confine(struct sandbox_config *config)
{
    const uint64_t file_bytes_max = config->file_bytes_max;
    uint32_t layers = 0;
    step_check(STEP_RIGHTS, system_call(SANDBOX_FD_VM, SANDBOX_FD_TEMPLATE, 0, 0, 0, 0, SYS_close_range));
    limit(RLIMIT_CORE,
          1); /* no core: less than a page, and a program of core_pattern gets none for 1 (core(5)) */
    limit(RLIMIT_NPROC, 0);
    limit(RLIMIT_NOFILE, MFT_MAX_ENTRIES + 1); /* not 0: ppoll accepts at most this many descriptors */
    if (file_bytes_max != UINT64_MAX)
        limit_files(file_bytes_max);
    drop_capabilities();
    step_check(STEP_RIGHTS, system_call(PR_SET_DUMPABLE, !config->user_is_shared, 0, 0, 0, 0, SYS_prctl));
    if (config->tracer) /* refused where there is no Yama, and not needed there */
        (void)system_call(PR_SET_PTRACER, config->tracer, 0, 0, 0, 0, SYS_prctl);
    step_check(STEP_RIGHTS, system_call(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0, SYS_prctl));

    layers |= deny_by_landlock();

    if (config->guard_disks) { /* first, because the other filter allows no further filter */
        struct sock_filter guard[DISK_GUARD_LENGTH];
        install(guard, disk_guard_build(guard, &the_vm));
    }
    struct sock_filter filter[FILTER_LENGTH];
    filter_build(filter, (uint64_t)system_call_return);
    install(filter, FILTER_LENGTH);
    return layers | ISOLATION_CAPABILITIES | ISOLATION_SECCOMP_FILTER; /* if one failed, there is no guest */
}
