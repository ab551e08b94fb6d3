/*
 * Makes a tender-sandbox: its shared memory, and the process.
 *
 * Namespaces are requested at clone(), which is the only way to have a process in a pid namespace without a
 * second process. After exec() such a process has no capability (no uid is mapped), and only the owner of its
 * namespace, which is this process, may look into its memory.
 *
 * One thread makes all the children, and lives as long as this process. The kernel kills a child whose
 * parent *thread* has ended (PR_SET_PDEATHSIG). A VM must outlive the thread that happened to make it,
 * but not this process. No guest can prevent that kill, because it needs nothing from the child.
 *
 * A network namespace costs the kernel a third of a millisecond, a mount namespace a tenth: more than the
 * rest of a boot. If this process is allowed to, that thread moves into new ones, which are empty and have no
 * interface up, and its children inherit them. So the sandboxes of one process share namespaces that none of
 * them can use: their filters allow no call that opens a socket or a file. Each child has its own user, pid
 * and ipc namespace. If this process is not allowed to (CAP_SYS_ADMIN is needed, and a thread cannot enter a
 * user namespace to get it), each child has its own namespaces of all kinds. The command, which makes
 * only one sandbox, becomes that sandbox itself (become.c).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "child.h"
#include "device_ops.h"
#include "image_memory.h"
#include "quiet_thread.h"
#include "runner.h"
#include "spawn.h"
#include "start_state.h"
#include "unprivileged.h"

static struct {
    pthread_mutex_t lock; /* one spawn at a time */
    pthread_mutex_t handover;
    pthread_cond_t changed;
    struct spawn *request; /* NULL: done */
    bool runs;             /* the thread exists in this process; a fork does not have it */
    bool watched;          /* the handler for forks is installed */
    void *stack;
    uint32_t shared; /* namespaces of the thread that the rest of this process does not share */
} spawner = {.lock = PTHREAD_MUTEX_INITIALIZER,
             .handover = PTHREAD_MUTEX_INITIALIZER,
             .changed = PTHREAD_COND_INITIALIZER};

#define ALL_NAMESPACES (CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC)

/* From most to least: what an unprivileged process gets; the same without one kind, whose limit may have been
 * reached; what root gets where user namespaces are refused (a chroot, a container); nothing. Each process
 * tries again from the top, because the number may have fallen below the limit again. */
static const uint32_t namespaces[] = {
    ALL_NAMESPACES,
    ALL_NAMESPACES & ~CLONE_NEWNET,
    ALL_NAMESPACES & ~CLONE_NEWIPC,
    ALL_NAMESPACES & ~CLONE_NEWPID,
    ALL_NAMESPACES & ~CLONE_NEWNS,
    ALL_NAMESPACES & ~CLONE_NEWUSER,
    CLONE_NEWUSER,
    0,
};

uint32_t namespaces_try(uint32_t kinds, int (*attempt)(uint32_t set, void *of), void *of)
{
    bool refused = false; /* a user namespace was refused by a rule and not by a limit */
    for (size_t i = 0; i < sizeof namespaces / sizeof *namespaces; i++) {
        const uint32_t set = namespaces[i] & kinds;
        if (refused && set & CLONE_NEWUSER)
            continue;
        const int error = attempt(set, of);
        if (!error)
            return set;
        /* EPERM: not allowed here; EUSERS, ENOSPC: no more of them */
        refused |= set & CLONE_NEWUSER && error != ENOSPC && error != EUSERS;
    }
    return 0;
}

void spawn_change_user(struct spawn *spawn, struct unprivileged *saved)
{
    const enum unprivileged_user user = unprivileged_begin(saved);
    spawn->unprivileged = user != USER_ROOT;
    *spawn->user_is_shared = user == USER_SHARED;
}

static int child_main(void *spawn)
{
    child_become(spawn);
}

/* ---- the thread */

static int clone_with(uint32_t set, void *of)
{
    struct spawn *spawn = of;
    spawn->isolation = isolation_of(set | spawner.shared);
    spawn->error = 0;
    spawn->pid = clone(child_main, (uint8_t *)spawner.stack + CHILD_STACK_BYTES,
                       (int)(CLONE_VM | CLONE_VFORK | CLONE_PIDFD | SIGCHLD | set), spawn, &spawn->pidfd);
    if (spawn->pid > 0)
        return 0;
    spawn->error = -errno;
    return errno == EAGAIN || errno == ENOMEM ? 0 : errno;
}

static void spawn_child(struct spawn *spawn)
{
    (void)namespaces_try(ALL_NAMESPACES & ~spawner.shared, clone_with, spawn);
    if (spawn->pid > 0 && spawn->error < 0) { /* the child was made, but did not execute the program */
        siginfo_t ignored;
        (void)waitid(P_PIDFD, (id_t)spawn->pidfd, &ignored, WEXITED);
        close(spawn->pidfd);
    }
}

static void *spawner_body(void *unused)
{
    (void)unused;
    /* A thread can have namespaces of its own: the rest of this process keeps its namespaces. */
    spawner.shared = unshare(CLONE_NEWNET | CLONE_NEWNS) == 0 ? CLONE_NEWNET | CLONE_NEWNS : 0;
    pthread_mutex_lock(&spawner.handover);
    for (;;) {
        while (!spawner.request)
            pthread_cond_wait(&spawner.changed, &spawner.handover);
        /* Each time, because a program that changes its user has the C library change every thread's. */
        spawn_change_user(spawner.request, NULL);
        spawn_child(spawner.request);
        spawner.request = NULL;
        pthread_cond_broadcast(&spawner.changed);
    }
    return NULL;
}

/* A fork has the memory of a thread that it does not have, and locks that no thread will release. */
static void forget_in_fork(void)
{
    pthread_mutex_init(&spawner.lock, NULL);
    pthread_mutex_init(&spawner.handover, NULL);
    pthread_cond_init(&spawner.changed, NULL);
    spawner.request = NULL;
    spawner.runs = false;
}

static int make_child_stack(void)
{
    if (!spawner.stack)
        spawner.stack = child_stack_new();
    return spawner.stack ? 0 : -ENOMEM;
}

static int spawner_start(void)
{
    if (spawner.runs)
        return 0;
    if (!spawner.watched && pthread_atfork(NULL, NULL, forget_in_fork) != 0)
        return -ENOMEM;
    spawner.watched = true;
    int no_stack = make_child_stack();
    if (no_stack)
        return no_stack;
    /* It blocks signals also because none of our handlers may run in a child that shares our memory. */
    const int error = quiet_thread(NULL, 128u << 10, spawner_body, NULL);
    spawner.runs = error == 0;
    return -error;
}

static int spawner_ask(struct spawn *spawn)
{
    pthread_mutex_lock(&spawner.lock);
    int error = spawner_start();
    if (!error) {
        pthread_mutex_lock(&spawner.handover);
        spawner.request = spawn;
        pthread_cond_broadcast(&spawner.changed);
        while (spawner.request)
            pthread_cond_wait(&spawner.changed, &spawner.handover);
        pthread_mutex_unlock(&spawner.handover);
        error = spawn->error;
    }
    pthread_mutex_unlock(&spawner.lock);
    return error;
}

/* Without the thread: for a process that has one thread, ends with it and makes one sandbox. */
static int spawn_here(struct spawn *spawn)
{
    int error = make_child_stack();
    if (error)
        return error;
    sigset_t all, saved;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &saved); /* as in the thread: until it executes, the child is us */
    struct unprivileged before;
    spawn_change_user(spawn, &before);
    spawn_child(spawn);
    unprivileged_end(&before);
    pthread_sigmask(SIG_SETMASK, &saved, NULL);
    return spawn->error;
}

/* ---- the VM */

#define MEMORY_NAME     "tender-vm"
#define MEMORY_NAME_MAX 249 /* memfd_create(2) */

/* "tender-vm:/path/app.elf"; without the path if that would be too long. */
static void name_memory(char name[MEMORY_NAME_MAX + 1], const char *path)
{
    size_t length = sizeof MEMORY_NAME - 1;
    memcpy(name, MEMORY_NAME, sizeof MEMORY_NAME);
    if (!path)
        return;
    const size_t path_bytes = strlen(path);
    name[length++] = ':';
    if (*path != '/') {
        if (!getcwd(name + length, MEMORY_NAME_MAX - length) || name[length] != '/')
            path = NULL;
        length += strlen(name + length);
        name[length++] = '/';
    }
    if (!path || length + path_bytes > MEMORY_NAME_MAX)
        memcpy(name, MEMORY_NAME, sizeof MEMORY_NAME);
    else
        memcpy(name + length, path, path_bytes + 1);
}

int sandbox_init(struct sandbox *sandbox, struct vm *vm, const char *path)
{
    char name[MEMORY_NAME_MAX + 1];
    name_memory(name, path);
    memset(sandbox, 0, sizeof *sandbox);
    pthread_mutex_init(&sandbox->control_lock, NULL);
    sandbox->vm = vm;
    sandbox->parent = getpid();
    sandbox->control_fd = sandbox->pidfd = sandbox->pid = -1;
    sandbox->vm_fd = memfd_create(name, MFD_CLOEXEC);
    if (sandbox->vm_fd < 0)
        return -errno;
    void *mapping = MAP_FAILED;
    if (ftruncate(sandbox->vm_fd, SANDBOX_VM_BYTES) == 0)
        mapping = mmap(NULL, SANDBOX_VM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, sandbox->vm_fd, 0);
    if (mapping == MAP_FAILED) {
        int error = -errno;
        close(sandbox->vm_fd);
        return error;
    }
    sandbox->mapping = mapping;
    vm->shared = (struct vm_shared *)(void *)(sandbox->mapping + SANDBOX_SHARED_OFFSET);
    vm->event = &sandbox->event;
    return 0;
}

uint8_t *sandbox_boot_info(struct sandbox *sandbox)
{
    return sandbox->mapping + SANDBOX_BOOT_OFFSET;
}

/* Whether a guest could change a disk in a way that `file_bytes_max` does not prevent. */
static bool disks_need_a_guard(const struct vm *vm, uint64_t file_bytes_max)
{
    for (uint32_t i = 0; i < vm->device_end; i++) {
        const struct vm_device *device = &vm->devices[i];
        if (!device_has_places(device))
            continue;
        const struct device_places places = device_places(device);
        int flags = fcntl(device->fd, F_GETFL); /* the guest may be allowed less than the descriptor allows */
        bool writable = flags >= 0 && (flags & O_ACCMODE) != O_RDONLY;
        if (writable && (places.read_only || places.bytes < file_bytes_max))
            return true;
    }
    return false;
}

/* `into_file`: the program writes to a file that is not a disk. */
static void fill_config(struct sandbox_config *config, const struct vm *vm, const struct elf_image *image,
                        bool into_file)
{
    config->file_bytes_max = into_file ? UINT64_MAX : vm_largest_file(vm); /* such a file grows */
    config->guard_disks = disks_need_a_guard(vm, config->file_bytes_max);
    config->kick_signal = (uint32_t)VM_KICK_SIGNAL;
    config->device_end = vm->device_end;
    config->console = vm->console;
    memcpy(config->devices, vm->devices, vm->device_end * sizeof config->devices[0]);
    config->range_count = image_ranges(image, config->ranges);
}

void sandbox_name_fds(struct spawn *spawn, const struct sandbox *sandbox, int template_fd)
{
    const struct vm *vm = sandbox->vm;
    spawn_add_fd(spawn, sandbox->vm_fd, SANDBOX_FD_VM);
    spawn_add_fd(spawn, template_fd, SANDBOX_FD_TEMPLATE);
    if (vm->console.fd >= 0)
        spawn_add_fd(spawn, vm->console.fd, SANDBOX_FD_CONSOLE);
    for (int i = 0; i < (int)vm->device_end; i++)
        if (vm->devices[i].type)
            spawn_add_fd(spawn, vm->devices[i].fd, sandbox_device_fd(vm->devices[i].type, (uint32_t)i));
}

/* The program handles its own faults and the kick, and lets a terminal stop it. All other signals are for
 * this process. */
static void program_mask(sigset_t *mask)
{
    sigfillset(mask);
    const int open[] = {SANDBOX_FAULTS, SIGTSTP, VM_KICK_SIGNAL};
    for (size_t i = 0; i < sizeof open / sizeof *open; i++)
        sigdelset(mask, open[i]);
}

/* A program file of root may be executable for root only, and the process that will execute it is not
 * root. */
static int copy_of_program(int program_fd, const struct stat *about)
{
    char path[32];
    int copy = memfd_create("tender-sandbox", MFD_CLOEXEC), from = -1, opened = -1;
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", program_fd);
    if (copy >= 0)
        from = open(path, O_RDONLY | O_CLOEXEC);
    for (off_t at = 0; from >= 0 && at < about->st_size;)
        if (sendfile(copy, from, &at, (size_t)(about->st_size - at)) <= 0)
            break;
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", copy);
    if (from >= 0 && lseek(copy, 0, SEEK_END) == about->st_size)
        opened = open(path, O_RDONLY | O_CLOEXEC); /* a file that is open for writing cannot be executed */
    if (from >= 0)
        close(from);
    if (copy >= 0)
        close(copy);
    return opened;
}

static int open_program(const char *path)
{
    struct stat about;
    int fd = open(path, O_PATH | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (geteuid() == 0 && fstat(fd, &about) == 0 && S_ISREG(about.st_mode) && about.st_mode & S_IXUSR &&
        !(about.st_mode & S_IXOTH)) {
        int copy = copy_of_program(fd, &about);
        if (copy >= 0) {
            close(fd);
            return copy;
        }
    }
    return fd;
}

int sandbox_prepare(struct sandbox *sandbox, const struct elf_image *image, uint64_t mem_bytes,
                    const char *program, const char *name, bool into_file, struct spawn *spawn)
{
    struct sandbox_config *config = (void *)(sandbox->mapping + SANDBOX_CONFIG_OFFSET);
    struct cpu_state start;
    start_state_registers(image->entry, mem_bytes, &start);
    config->rip = start.general.rip;
    config->rsp = start.general.gpr[GPR_RSP];
    config->rdi = start.general.gpr[GPR_RDI];
    fill_config(config, sandbox->vm, image, into_file);
    config->template_bytes = start_state_template_bytes(image);
    config->mem_bytes = mem_bytes;
    config->small_pages_end = guest_small_pages_end(image_end(image), mem_bytes);
    config->extensions = image->extensions;

    const char *slash = strrchr(name, '/'); /* the guest can read it, and must not see a path of the host */
    *spawn = (struct spawn){.words = {"tender-sandbox", slash ? slash + 1 : name, NULL},
                            .death_signal = SIGKILL,
                            .user_is_shared = &config->user_is_shared,
                            .pid = -1,
                            .pidfd = -1};
    spawn->argv = spawn->words;
    program_mask(&spawn->mask);
    spawn->program_fd = open_program(program);
    return spawn->program_fd < 0 ? spawn->program_fd : 0;
}

static int spawn_by(int (*ask)(struct spawn *spawn), struct sandbox *sandbox, const struct elf_image *image,
                    int template_fd, uint64_t mem_bytes, const char *program, const char *name)
{
    struct spawn spawn;
    int pair[2];
    int error = sandbox_prepare(sandbox, image, mem_bytes, program, name, false, &spawn);
    if (error)
        return error;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        error = -errno;
        close(spawn.program_fd);
        return error;
    }
    spawn_add_fd(&spawn, pair[1], SANDBOX_FD_CONTROL);
    spawn_add_fd(&spawn, sandbox->vm->stop_fd, SANDBOX_FD_STOP);
    sandbox_name_fds(&spawn, sandbox, template_fd);
    error = ask(&spawn);
    close(spawn.program_fd);
    close(pair[1]);
    if (error) {
        close(pair[0]);
        return error;
    }
    sandbox->control_fd = pair[0];
    sandbox->pidfd = spawn.pidfd;
    sandbox->pid = spawn.pid;
    sandbox->isolation = spawn.isolation;
    close(sandbox->vm_fd);
    sandbox->vm_fd = -1;
    return 0;
}

int sandbox_spawn(struct sandbox *sandbox, const struct elf_image *image, int template_fd, uint64_t mem_bytes,
                  const char *program, const char *name)
{
    return spawn_by(spawner_ask, sandbox, image, template_fd, mem_bytes, program, name);
}

int sandbox_spawn_here(struct sandbox *sandbox, const struct elf_image *image, int template_fd,
                       uint64_t mem_bytes, const char *program, const char *name, bool observed)
{
    struct sandbox_config *config = (void *)(sandbox->mapping + SANDBOX_CONFIG_OFFSET);
    config->ends_at_once = !observed;
    return spawn_by(spawn_here, sandbox, image, template_fd, mem_bytes, program, name);
}
