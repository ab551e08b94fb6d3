#define _GNU_SOURCE
#include "owner.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "close_later.h"
#include "device.h"
#include "kvm_cpu_state.h"
#include "reset_kvm.h"
#include "run_kvm.h"
#include "spawn.h"
#include "start_state.h"
#include "tsc.h"

#define LIMIT_STACK_BYTES 0x10000
#define NS_PER_S          1000000000u

enum run_state { NEW, RUNNING, ENDED };

/* A time limit of a run: a thread that stops the VM. It is a thread of C's: what replaces Python's threads by
 * something else, as gevent does, does not reach it. */
struct limit {
    bool runs;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool over; /* the run is */
    bool timed_out;
    uint64_t deadline_ns;
};

struct owned_vm {
    uint32_t users; /* the handle, calls under way, the thread of owned_start() */
    pid_t process;
    struct vm *vm;
    struct sandbox *sandbox;
    struct kvm_machine kvm;
    struct cpu_state start; /* of the vCPU */
    struct descriptor devices[MFT_MAX_ENTRIES];
    struct descriptor console;

    enum run_state state;
    bool started; /* by owned_start() */
    pid_t runner;
    const int *turn;
    struct limit limit;
    int done_fd; /* eventfd, readable once the thread of owned_start() is done; -1: not started */
};

/* Guards what handles stand for, their users and their states. Nothing waits while it holds this. */
static pthread_mutex_t handles = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t unused = PTHREAD_COND_INITIALIZER; /* somebody's last use but one is over */

/* The descriptors of a process's first vCPU are never closed: while a host has a vCPU without a local APIC,
 * KVM makes another in a tenth of the instructions. With the first it patches its code, and tells every
 * processor; with the last it does so again. The vCPU holds its VM, whose memory is gone.
 *
 * Its machine stays open until the next VM is made, which takes the memory slot from it. A slot is a range of
 * our addresses; the next VM's memory comes to lie there, and whatever then changes in this range the kernel
 * tells the old machine too, which walks its page tables: a sixth of the boot of an image of more than 2 MiB.
 */
static struct {
    pid_t process;
    int machine_fd; /* -1: its slot is empty */
} kept = {.machine_fd = -1};

/* A fork may have come while a thread that the child does not have held them. */
static void reset_locks(void)
{
    pthread_mutex_init(&handles, NULL);
    pthread_cond_init(&unused, NULL);
}

static int watch_forks(void)
{
    static bool watched;
    pthread_mutex_lock(&handles);
    int error = watched ? 0 : pthread_atfork(NULL, NULL, reset_locks);
    watched = error == 0;
    pthread_mutex_unlock(&handles);
    return -error;
}

void descriptor_close(struct descriptor *descriptor)
{
    int fd = descriptor->fd;
    descriptor->fd = -1;
    if (fd < 0)
        return;
    if (descriptor->leave_header)
        net_leave_header(fd);
    close(fd);
}

static void close_number(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* ---- the life of what a handle stands for */

int owned_vm_make(struct vm_handle *handle)
{
    int error = watch_forks();
    struct owned_vm *owned = error ? NULL : calloc(1, sizeof *owned);
    if (!owned)
        return error ? error : -ENOMEM;
    owned->vm = calloc(1, sizeof *owned->vm);
    error = owned->vm ? vm_init(owned->vm) : -ENOMEM;
    if (error) {
        free(owned->vm);
        free(owned);
        return error;
    }
    owned->users = 1;
    owned->process = getpid();
    owned->console.fd = owned->done_fd = -1;
    owned->kvm = KVM_MACHINE_NONE;
    for (size_t i = 0; i < MFT_MAX_ENTRIES; i++)
        owned->devices[i].fd = -1;
    handle->owned = owned;
    return 0;
}

/* True: what is kept from now on is this VM's vCPU, with its machine. */
static bool keep_vcpu(struct owned_vm *owned)
{
    pthread_mutex_lock(&handles);
    const bool is_first = kept.process != owned->process;
    if (is_first) { /* in a fork the parent's are left as they are */
        kept.process = owned->process;
        kept.machine_fd = owned->kvm.vm_fd;
    }
    pthread_mutex_unlock(&handles);
    return is_first;
}

static void release_kvm(struct owned_vm *owned)
{
    struct kvm_machine *kvm = &owned->kvm;
    if (kvm->run && keep_vcpu(owned))
        kvm->vcpu_fd = kvm->vm_fd = -1;
    const int vm_fd = kvm->vm_fd;
    kvm->vm_fd = -1;
    kvm_machine_close(kvm);
    if (vm_fd >= 0)
        close_later(vm_fd); /* the VM's last, which waits in the kernel */
}

void owned_kvm_close(struct vm_handle *handle)
{
    if (handle->owned)
        release_kvm(handle->owned);
}

/* A forked child has copies of descriptors. The machine, the TAP's state, the process and every lock are the
 * parent's; guest memory was not inherited, and something else may lie at its address by now. The vCPU's page
 * was, and holds its vCPU. */
static void release_copies(struct owned_vm *owned)
{
    kvm_machine_close(&owned->kvm);
    close_number(&owned->vm->stop_fd);
    if (owned->vm->memory.template)
        close_number(&owned->vm->memory.pagemap_fd);
    for (size_t i = 0; i < MFT_MAX_ENTRIES; i++)
        owned->devices[i].leave_header = 0;
}

static void limit_end(struct owned_vm *owned);

/* The order matters: the machine, then the ring's worker and guest memory, then the devices they use. */
static void release(struct owned_vm *owned)
{
    const bool is_copy = owned->process != getpid();
    if (is_copy)
        release_copies(owned);
    else
        limit_end(owned);
    if (owned->sandbox) {
        sandbox_release(owned->sandbox);
        free(owned->sandbox);
    }
    if (!is_copy) {
        release_kvm(owned);
        vm_release(owned->vm);
    }
    free(owned->vm);
    for (size_t i = 0; i < MFT_MAX_ENTRIES; i++)
        descriptor_close(&owned->devices[i]);
    descriptor_close(&owned->console);
    close_number(&owned->done_fd);
    free(owned);
}

/* A use, or NULL with *answer. */
static struct owned_vm *use(const struct vm_handle *handle, int *answer)
{
    pthread_mutex_lock(&handles);
    struct owned_vm *owned = handle->owned;
    if (owned)
        owned->users++;
    pthread_mutex_unlock(&handles);
    *answer = owned ? 0 : -ESTALE;
    return owned;
}

static void unuse(struct owned_vm *owned)
{
    pthread_mutex_lock(&handles);
    const bool is_last = --owned->users == 0;
    if (owned->users == 1)
        pthread_cond_broadcast(&unused);
    pthread_mutex_unlock(&handles);
    if (is_last)
        release(owned);
}

/* The same, for what a forked child cannot do. */
static struct owned_vm *use_here(const struct vm_handle *handle, int *answer)
{
    struct owned_vm *owned = use(handle, answer);
    if (owned && owned->process != getpid()) {
        unuse(owned);
        *answer = -ECHILD;
        return NULL;
    }
    return owned;
}

/* With `handles` held: why it cannot be taken from its handle. */
static int in_the_way(const struct owned_vm *owned)
{
    if (owned->process != getpid() || owned->state != RUNNING)
        return 0;
    if (owned->runner == (pid_t)syscall(SYS_gettid))
        return -EDEADLK;
    return owned->started ? -EINPROGRESS : -EBUSY;
}

int owned_vm_close(struct vm_handle *handle)
{
    pthread_mutex_lock(&handles);
    struct owned_vm *owned = handle->owned;
    int answer = owned ? in_the_way(owned) : 0;
    if (!owned || answer) {
        pthread_mutex_unlock(&handles);
        return answer;
    }
    handle->owned = NULL;
    while (owned->users > 1 && owned->process == getpid()) /* the users of a fork are its parent's threads */
        pthread_cond_wait(&unused, &handles);
    pthread_mutex_unlock(&handles);
    release(owned);
    return 0;
}

void owned_vm_drop(struct vm_handle *handle)
{
    pthread_mutex_lock(&handles);
    struct owned_vm *owned = handle->owned;
    handle->owned = NULL;
    if (owned && owned->process != getpid())
        owned->users = 1; /* of a fork: the others are its parent's threads */
    pthread_mutex_unlock(&handles);
    if (owned)
        unuse(owned);
}

int owned_vm_move(struct vm_handle *from, struct vm_handle *to)
{
    pthread_mutex_lock(&handles);
    struct owned_vm *owned = from->owned;
    int answer = owned ? in_the_way(owned) : -ESTALE;
    if (!answer && owned->process != getpid())
        answer = -ECHILD;
    if (!answer) {
        from->owned = NULL;
        while (owned->users > 1)
            pthread_cond_wait(&unused, &handles);
        pthread_mutex_unlock(&handles); /* nobody else has it any more */
        limit_end(owned);               /* of a run that began just then, and found the handle moved */
        pthread_mutex_lock(&handles);
        owned->state = NEW;
        owned->turn = NULL;
        owned->started = false;
        owned->limit.timed_out = false;
        close_number(&owned->done_fd);
        to->owned = owned;
    }
    pthread_mutex_unlock(&handles);
    return answer;
}

/* ---- while it is made */

struct vm *owned_vm(struct vm_handle *handle)
{
    return handle->owned ? handle->owned->vm : NULL;
}

struct sandbox *owned_sandbox(struct vm_handle *handle)
{
    return handle->owned ? handle->owned->sandbox : NULL;
}

int owned_vm_add_sandbox(struct vm_handle *handle)
{
    struct owned_vm *owned = handle->owned;
    if (!owned || owned->sandbox)
        return owned ? -EALREADY : -ESTALE;
    struct sandbox *sandbox = malloc(sizeof *sandbox);
    if (!sandbox)
        return -ENOMEM;
    net_leave_segments(owned->vm);
    int error = sandbox_init(sandbox, owned->vm);
    if (error)
        free(sandbox);
    else
        owned->sandbox = sandbox;
    return error;
}

static void take_descriptor(struct descriptor *to, struct descriptor *from)
{
    *to = *from;
    from->fd = -1;
}

int owned_vm_add_device(struct vm_handle *handle, uint32_t number, struct descriptor *descriptor)
{
    struct owned_vm *owned = handle->owned;
    if (!owned)
        return -ESTALE;
    if (number >= MFT_MAX_ENTRIES || owned->devices[number].fd >= 0)
        return -EINVAL;
    take_descriptor(&owned->devices[number], descriptor);
    return 0;
}

int owned_vm_add_console(struct vm_handle *handle, struct descriptor *descriptor)
{
    if (!handle->owned)
        return -ESTALE;
    take_descriptor(&handle->owned->console, descriptor);
    return 0;
}

int owned_kvm_open(struct vm_handle *handle, const char *path)
{
    if (!handle->owned)
        return -ESTALE;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    handle->owned->kvm.kvm_fd = fd;
    return fd;
}

int owned_kvm_create(struct vm_handle *handle, int fd, unsigned long request, int is_vcpu)
{
    if (!handle->owned)
        return -ESTALE;
    int made;
    do
        made = ioctl(fd, request, 0);
    while (made < 0 && errno == EINTR); /* a signal, whose handler has run by now */
    if (made < 0)
        return -errno;
    *(is_vcpu ? &handle->owned->kvm.vcpu_fd : &handle->owned->kvm.vm_fd) = made;
    return made;
}

int owned_kvm_prepare(struct vm_handle *handle, struct machine_error *error)
{
    return handle->owned ? kvm_machine_prepare(&handle->owned->kvm, handle->owned->vm, error) : -ESTALE;
}

int owned_kvm_finish(struct vm_handle *handle, gpa_t entry, struct machine_error *error)
{
    struct owned_vm *owned = handle->owned;
    if (!owned)
        return -ESTALE;
    start_state_registers(entry, owned->vm->memory.bytes, &owned->start);
    return kvm_machine_finish(&owned->kvm, &owned->start, error);
}

void owned_kvm_empty_kept(void)
{
    pthread_mutex_lock(&handles);
    int machine_fd = -1;
    if (kept.process == getpid()) {
        machine_fd = kept.machine_fd;
        kept.machine_fd = -1;
    }
    pthread_mutex_unlock(&handles);
    if (machine_fd < 0)
        return;
    kvm_clear_memory(machine_fd);
    close(machine_fd);
}

int owned_write_boot_info(struct vm_handle *handle, const struct elf_image *image, const struct mft *manifest,
                          uint64_t mem_bytes, const char *cmdline, size_t cmdline_bytes)
{
    struct owned_vm *owned = handle->owned;
    if (!owned)
        return -ESTALE;
    if (owned->sandbox) {
        start_state_write_boot_info(sandbox_boot_info(owned->sandbox), image, manifest, mem_bytes, tsc_hz(),
                                    0, cmdline, cmdline_bytes);
        return 0;
    }
    const struct guest_memory *memory = &owned->vm->memory;
    start_state_write_boot_info(memory->hva + HVT_BOOT_INFO_GPA, image, manifest, memory->bytes,
                                owned->kvm.tsc_hz, owned->vm->ring.shared ? memory->bytes : 0, cmdline,
                                cmdline_bytes);
    return 0;
}

/* ---- used again */

static _Atomic(struct kvm_fresh *) fresh; /* of any vCPU of this process; never freed */

/* Two threads that ask at once get equal answers. */
static int take_fresh(const struct kvm_machine *kvm)
{
    struct kvm_fresh *none = NULL, *taken;
    if (atomic_load(&fresh))
        return 0;
    taken = kvm_fresh_take(kvm->kvm_fd, kvm->vcpu_fd);
    if (!taken)
        return -errno;
    if (!atomic_compare_exchange_strong(&fresh, &none, taken))
        free(taken);
    return 0;
}

int owned_keep(struct vm_handle *handle, int template_fd)
{
    struct owned_vm *owned = handle->owned;
    if (!owned)
        return -ESTALE;
    if (owned->sandbox) /* a process that a guest has had is not to be trusted with another's */
        return -EOPNOTSUPP;
    const int error = guest_memory_keep(&owned->vm->memory, template_fd);
    return error ? error : take_fresh(&owned->kvm);
}

/* Memory behind the vCPU: KVM completes the last guest's exit there, and that of an `ins` writes to it. */
int owned_reset(struct vm_handle *handle)
{
    struct owned_vm *owned = handle->owned;
    if (!owned)
        return -ESTALE;
    const int error = kvm_reset(atomic_load(&fresh), &owned->kvm, &owned->start);
    return error ? error : vm_reset(owned->vm);
}

/* What a sandbox's guest had when it ended is known where its end came by a signal: general registers, and
 * CR2 and the FS base among the event's. Of its vector registers, and of a guest that waits, nothing is. */
static int sandbox_cpu_state(const struct vm_event *event, struct cpu_state *state)
{
    if (!event->registers_valid)
        return -ENODATA;
    memcpy(state->general.gpr, event->registers.gpr, sizeof state->general.gpr);
    state->general.rip = event->registers.rip;
    state->general.rflags = event->registers.rflags;
    state->known = CPU_GENERAL;
    return 0;
}

/* With a use: nothing runs it while this is under way. */
static int state_begin(struct owned_vm *owned)
{
    pthread_mutex_lock(&handles);
    const int answer = owned->state == RUNNING ? -EBUSY : 0;
    pthread_mutex_unlock(&handles);
    return answer;
}

int owned_cpu_state(struct vm_handle *handle, uint32_t parts, struct cpu_state *state)
{
    int answer;
    struct owned_vm *owned = use_here(handle, &answer);
    if (!owned)
        return answer;
    answer = state_begin(owned);
    if (!answer)
        answer = owned->sandbox ? sandbox_cpu_state(owned->vm->event, state)
                                : kvm_cpu_state_get(owned->kvm.vcpu_fd, parts, state);
    unuse(owned);
    return answer;
}

int owned_cpu_state_set(struct vm_handle *handle, uint32_t parts, const struct cpu_state *state)
{
    int answer;
    const char *name;
    struct owned_vm *owned = use_here(handle, &answer);
    if (!owned)
        return answer;
    answer = state_begin(owned);
    if (!answer)
        answer = owned->sandbox ? -EOPNOTSUPP : kvm_cpu_state_set(owned->kvm.vcpu_fd, parts, state, &name);
    unuse(owned);
    return answer;
}

/* ---- a run */

static void *limit_body(void *of)
{
    struct owned_vm *owned = of;
    struct limit *limit = &owned->limit;
    const struct timespec deadline = {(time_t)(limit->deadline_ns / NS_PER_S),
                                      (long)(limit->deadline_ns % NS_PER_S)};
    pthread_mutex_lock(&limit->lock);
    int waited = 0;
    while (!limit->over && waited != ETIMEDOUT)
        waited = pthread_cond_timedwait(&limit->changed, &limit->lock, &deadline);
    if (!limit->over) {
        limit->timed_out = true;
        vm_stop(owned->vm);
    }
    pthread_mutex_unlock(&limit->lock);
    return NULL;
}

static int limit_begin(struct owned_vm *owned, uint64_t limit_ns)
{
    struct limit *limit = &owned->limit;
    if (limit_ns == NO_LIMIT)
        return 0;
    pthread_attr_t attributes;
    pthread_condattr_t clock;
    sigset_t all, saved;
    limit->over = limit->timed_out = false;
    limit->deadline_ns = monotonic_ns() + limit_ns;
    pthread_mutex_init(&limit->lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&limit->changed, &clock);
    pthread_condattr_destroy(&clock);
    sigfillset(&all); /* a signal that woke this thread would leave the guest running */
    pthread_sigmask(SIG_SETMASK, &all, &saved);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, LIMIT_STACK_BYTES);
    int error = pthread_create(&limit->thread, &attributes, limit_body, owned);
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &saved, NULL);
    limit->runs = error == 0;
    return -error;
}

/* By one thread at a time: the run's, or the one that releases. */
static void limit_end(struct owned_vm *owned)
{
    struct limit *limit = &owned->limit;
    if (!limit->runs)
        return;
    pthread_mutex_lock(&limit->lock);
    limit->over = true;
    pthread_cond_signal(&limit->changed);
    pthread_mutex_unlock(&limit->lock);
    pthread_join(limit->thread, NULL);
    pthread_cond_destroy(&limit->changed);
    pthread_mutex_destroy(&limit->lock);
    limit->runs = false;
}

/* With a use. NEW becomes RUNNING, with its time limit. */
static int begin(struct owned_vm *owned, uint64_t limit_ns, bool started)
{
    int answer = 0;
    pthread_mutex_lock(&handles);
    if (owned->state != NEW)
        answer = owned->state == RUNNING ? -EBUSY : -EALREADY;
    else
        owned->state = RUNNING;
    if (!answer) {
        owned->started = started;
        owned->runner = started ? 0 : (pid_t)syscall(SYS_gettid);
    }
    pthread_mutex_unlock(&handles);
    if (answer)
        return answer;
    answer = limit_begin(owned, limit_ns);
    if (answer) {
        pthread_mutex_lock(&handles);
        owned->state = NEW;
        pthread_mutex_unlock(&handles);
    }
    return answer;
}

static void end(struct owned_vm *owned)
{
    limit_end(owned);
    pthread_mutex_lock(&handles);
    owned->state = ENDED;
    owned->runner = 0;
    owned->turn = NULL;
    pthread_mutex_unlock(&handles);
}

int owned_run_begin(struct vm_handle *handle, uint64_t limit_ns, int *turn)
{
    int answer;
    struct owned_vm *owned = use_here(handle, &answer);
    if (!owned)
        return answer;
    answer = begin(owned, limit_ns, false);
    if (!answer) {
        owned->turn = turn;
        *turn = 1;
    }
    unuse(owned);
    return answer;
}

int owned_run(struct vm_handle *handle, struct run_report *report)
{
    int answer;
    struct owned_vm *owned = use_here(handle, &answer);
    if (!owned) {
        vm_release_signals();
        return answer;
    }
    if (owned->sandbox)
        sandbox_run(owned->sandbox);
    else
        kvm_run_loop(owned->vm, owned->kvm.vcpu_fd, owned->kvm.run);
    vm_release_signals();
    report->event = *owned->vm->event;
    report->over = event_ends_run(report->event.kind);
    if (report->over) {
        limit_end(owned);
        report->timed_out = owned->limit.timed_out;
        if (owned->sandbox && report->event.kind != EVENT_SETUP_FAILED)
            report->isolation = sandbox_isolation(owned->sandbox);
        report->shared = *owned->vm->shared;
        if (!owned->started) /* its result is the thread's to keep first */
            end(owned);
    }
    unuse(owned);
    return 0;
}

void owned_run_leave(struct vm_handle *handle, const int *turn)
{
    int answer;
    vm_release_signals();
    struct owned_vm *owned = use_here(handle, &answer);
    if (!owned)
        return;
    if (owned->turn == turn)
        end(owned);
    unuse(owned);
}

struct start {
    struct owned_vm *owned;
    uint64_t key;
    void (*body)(uint64_t);
};

static void *start_body(void *argument)
{
    const struct start start = *(struct start *)argument;
    free(argument);
    pthread_mutex_lock(&handles);
    start.owned->runner = (pid_t)syscall(SYS_gettid);
    pthread_mutex_unlock(&handles);
    start.body(start.key);
    end(start.owned);
    const uint64_t one = 1;
    (void)!write(start.owned->done_fd, &one, sizeof one);
    unuse(start.owned);
    return NULL;
}

/* Python runs on it, so its stack has the size of Python's threads. */
static int start_thread(struct owned_vm *owned, struct start start, struct descriptor *done)
{
    struct start *argument = malloc(sizeof *argument);
    owned->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    const int copy_fd = owned->done_fd < 0 ? -1 : fcntl(owned->done_fd, F_DUPFD_CLOEXEC, 0);
    int error = copy_fd < 0 ? errno : 0;
    if (!error && !argument)
        error = ENOMEM;
    if (!error) {
        *argument = start;
        pthread_attr_t attributes;
        pthread_t thread;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        error = pthread_create(&thread, &attributes, start_body, argument);
        pthread_attr_destroy(&attributes);
    }
    if (!error) {
        done->fd = copy_fd;
        return 0;
    }
    if (copy_fd >= 0)
        close(copy_fd);
    free(argument);
    return -error;
}

/* Nothing ran: the VM is as new. */
static void take_back_start(struct owned_vm *owned)
{
    limit_end(owned);
    owned->vm->signals_elsewhere = false;
    close_number(&owned->done_fd);
    pthread_mutex_lock(&handles);
    owned->started = false;
    owned->state = NEW;
    pthread_mutex_unlock(&handles);
}

int owned_start(struct vm_handle *handle, uint64_t limit_ns, uint64_t key, void (*body)(uint64_t),
                struct descriptor *done, int *turn)
{
    int answer;
    struct owned_vm *owned = use_here(handle, &answer); /* the thread's, if there is one */
    if (!owned)
        return answer;
    answer = begin(owned, limit_ns, true);
    if (!answer) {
        owned->vm->signals_elsewhere = true;
        answer = start_thread(owned, (struct start){owned, key, body}, done);
        if (answer)
            take_back_start(owned);
    }
    if (answer)
        unuse(owned);
    else
        *turn = 1;
    return answer;
}

int owned_stop(struct vm_handle *handle)
{
    int answer;
    struct owned_vm *owned = use_here(handle, &answer);
    if (!owned)
        return answer;
    vm_stop(owned->vm);
    unuse(owned);
    return 0;
}

int owned_leave_headers(struct vm_handle *handle)
{
    int answer;
    struct owned_vm *owned = use_here(handle, &answer);
    if (!owned)
        return answer;
    for (size_t i = 0; i < MFT_MAX_ENTRIES; i++)
        if (owned->devices[i].fd >= 0 && owned->devices[i].leave_header)
            net_leave_header(owned->devices[i].fd);
    unuse(owned);
    return 0;
}

int owned_look(struct vm_handle *handle, struct vm_shared *copy)
{
    int answer;
    struct owned_vm *owned = use_here(handle, &answer);
    if (!owned)
        return answer;
    *copy = *owned->vm->shared;
    unuse(owned);
    return 0;
}

int64_t owned_read(struct vm_handle *handle, uint64_t gpa, void *to, uint64_t len)
{
    int answer;
    struct owned_vm *owned = use_here(handle, &answer);
    if (!owned)
        return answer;
    int64_t got = (int64_t)len;
    if (owned->sandbox)
        got = sandbox_read(owned->sandbox, gpa, to, len);
    else
        memcpy(to, owned->vm->memory.hva + gpa, len);
    unuse(owned);
    return got;
}

int owned_pid(struct vm_handle *handle, int *pid)
{
    int answer;
    struct owned_vm *owned = use_here(handle, &answer);
    if (!owned)
        return answer;
    *pid = owned->process;
    if (owned->sandbox)
        *pid = owned->sandbox->pidfd >= 0 ? owned->sandbox->pid : -1;
    unuse(owned);
    return 0;
}

int owned_isolation(struct vm_handle *handle, uint32_t *layers)
{
    int answer;
    struct owned_vm *owned = use_here(handle, &answer);
    if (!owned)
        return answer;
    *layers = owned->sandbox ? sandbox_isolation(owned->sandbox) : 0;
    unuse(owned);
    return 0;
}

int owned_net_news(struct vm_handle *handle, uint32_t *next, char *text)
{
    int answer;
    struct owned_vm *owned = use_here(handle, &answer);
    if (!owned)
        return answer;
    answer = net_news(owned->vm, next, NULL, text);
    unuse(owned);
    return answer;
}
