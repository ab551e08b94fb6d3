#define _GNU_SOURCE
#include "owner.h"
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "device.h"
#include "kvm_ops.h"
#include "lifecycle.h"
#include "runner.h"
#include "time_limit.h"

enum run_state { NEW, RUNNING, ENDED };

struct owned_vm {
    uint32_t users; /* the handle, calls in progress, the thread of tn_start() */
    pid_t process;
    struct vm *vm;
    struct machine machine;
    int devices[MFT_MAX_ENTRIES]; /* descriptors, or -1 */
    struct descriptor console;

    enum run_state state;
    bool started; /* by tn_start() */
    pid_t runner;
    const int *turn;
    struct time_limit limit;
    bool end_reported; /* the end of the run has been reported: done_fd is then readable */
    int done_fd;       /* an eventfd that reports the end; -1: not requested yet */
};

/* Guards what handles refer to, the user counts and the states. No thread waits while it holds this lock. */
static pthread_mutex_t handles = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t unused = PTHREAD_COND_INITIALIZER; /* only one use of some object is left */

/* At a fork, a thread that the child does not have may have held the locks. */
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

static void close_number(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void tn_descriptor_close(struct descriptor *descriptor)
{
    close_number(&descriptor->fd);
}

/* ---- the life of the object behind a handle */

int tn_vm_make(struct vm_handle *handle)
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
    owned->machine.vm = owned->vm;
    for (size_t i = 0; i < MFT_MAX_ENTRIES; i++)
        owned->devices[i] = -1;
    pthread_mutex_lock(&handles);
    vm_list_add(owned->vm);
    pthread_mutex_unlock(&handles);
    handle->owned = owned;
    return 0;
}

static void release_machine(struct owned_vm *owned)
{
    if (owned->machine.ops)
        owned->machine.ops->close(&owned->machine);
    owned->machine = (struct machine){.vm = owned->vm};
}

/* A forked child has copies of descriptors. The machine, the TAP's state, the process and every lock
 * belong to the parent. Guest memory was not inherited, and its address may be used for something else by
 * now. */
static void release_copies(struct owned_vm *owned)
{
    close_number(&owned->vm->stop_fd);
    if (owned->vm->memory.template)
        close_number(&owned->vm->memory.pagemap_fd);
}

/* The order matters: the machine, then the ring's worker and guest memory, then the devices they use. */
static void release(struct owned_vm *owned)
{
    const bool is_copy = owned->process != getpid();
    if (is_copy)
        release_copies(owned);
    else
        time_limit_end(&owned->limit);
    pthread_mutex_lock(&handles);
    vm_list_remove(owned->vm);
    pthread_mutex_unlock(&handles);
    release_machine(owned);
    if (!is_copy)
        vm_release(owned->vm);
    free(owned->vm);
    for (size_t i = 0; i < MFT_MAX_ENTRIES; i++)
        close_number(&owned->devices[i]);
    tn_descriptor_close(&owned->console);
    close_number(&owned->done_fd);
    free(owned);
}

/* Takes a use; with `stopped`, only of a VM that does not run. NULL: *answer holds the error. */
static struct owned_vm *use(const struct vm_handle *handle, bool stopped, int *answer)
{
    pthread_mutex_lock(&handles);
    struct owned_vm *const owned = handle->owned;
    *answer = !owned                               ? -ESTALE
              : owned->process != getpid()         ? -ECHILD
              : stopped && owned->state == RUNNING ? -EBUSY
                                                   : 0;
    if (!*answer)
        owned->users++;
    pthread_mutex_unlock(&handles);
    return *answer ? NULL : owned;
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

static void end_use(struct owned_vm *const *owned)
{
    if (*owned)
        unuse(*owned);
}

/* Takes a use until the calling function returns. If there is none, the function returns the error at
 * once. */
#define USE(owned, handle, stopped)                                                                          \
    int unusable;                                                                                            \
    struct owned_vm *const owned __attribute__((cleanup(end_use))) = use(handle, stopped, &unusable);        \
    if (!owned)                                                                                              \
    return unusable

/* Call it with `handles` held. Returns why the object cannot be taken from its handle, or 0. */
static int reason_against_taking(const struct owned_vm *owned)
{
    if (owned->process != getpid() || owned->state != RUNNING)
        return 0;
    if (owned->runner == (pid_t)syscall(SYS_gettid))
        return -EDEADLK;
    return owned->started ? -EINPROGRESS : -EBUSY;
}

int tn_vm_close(struct vm_handle *handle)
{
    pthread_mutex_lock(&handles);
    struct owned_vm *owned = handle->owned;
    int answer = owned ? reason_against_taking(owned) : 0;
    if (!owned || answer) {
        pthread_mutex_unlock(&handles);
        return answer;
    }
    handle->owned = NULL;
    while (owned->users > 1 && owned->process == getpid()) /* in a fork, the users are its parent's threads */
        pthread_cond_wait(&unused, &handles);
    pthread_mutex_unlock(&handles);
    release(owned);
    return 0;
}

void tn_vm_drop(struct vm_handle *handle)
{
    pthread_mutex_lock(&handles);
    struct owned_vm *owned = handle->owned;
    handle->owned = NULL;
    if (owned && owned->process != getpid())
        owned->users = 1; /* in a fork, the other users are its parent's threads */
    pthread_mutex_unlock(&handles);
    if (owned)
        unuse(owned);
}

int tn_vm_move(struct vm_handle *from, struct vm_handle *to)
{
    pthread_mutex_lock(&handles);
    struct owned_vm *owned = from->owned;
    int answer = owned ? reason_against_taking(owned) : -ESTALE;
    if (!answer && owned->process != getpid())
        answer = -ECHILD;
    if (!answer) {
        from->owned = NULL;
        while (owned->users > 1)
            pthread_cond_wait(&unused, &handles);
        pthread_mutex_unlock(&handles); /* no other thread can reach it any more */
        time_limit_end(&owned->limit);  /* of a run that began at that moment, and found the handle moved */
        pthread_mutex_lock(&handles);
        owned->state = NEW;
        owned->turn = NULL;
        owned->started = false;
        owned->limit.timed_out = false;
        owned->end_reported = false;
        close_number(&owned->done_fd);
        to->owned = owned;
    }
    pthread_mutex_unlock(&handles);
    return answer;
}

/* ---- making it */

struct vm *tn_vm(struct vm_handle *handle)
{
    return handle->owned ? handle->owned->vm : NULL;
}

int tn_machine_open(struct vm_handle *handle, const char *name, const struct machine_plan *plan,
                    struct machine_error *error)
{
    struct owned_vm *owned = handle->owned;
    const struct machine_ops *ops = machine_by_name(name);
    if (!owned || !ops)
        return !owned ? -ESTALE : -EINVAL;
    if (owned->machine.ops != ops)
        release_machine(owned); /* closes descriptors made for another machine, which was not available */
    return machine_open(&owned->machine, ops, plan, error);
}

/* Whether the device and the console are the same file. */
static bool is_console_file(const struct owned_vm *owned, int fd)
{
    struct stat console, device;
    return owned->console.fd >= 0 && fstat(owned->console.fd, &console) == 0 && fstat(fd, &device) == 0 &&
           console.st_dev == device.st_dev && console.st_ino == device.st_ino;
}

int tn_vm_attach(struct vm_handle *handle, uint32_t number, struct device_settings *settings,
                 const struct elf_image *image, int ring_mode, struct mft_entry *entry,
                 struct device_error *error)
{
    struct owned_vm *owned = handle->owned;
    const struct device_guest guest = {&image->manifest, image->extensions, (uint32_t)ring_mode};
    if (!owned)
        return -ESTALE;
    if (number >= MFT_MAX_ENTRIES || owned->devices[number] >= 0)
        return -EINVAL;
    owned->devices[number] = device_attach(owned->vm, number, settings, &guest, entry, error);
    if (owned->devices[number] < 0)
        return -1;
    if (is_console_file(owned, owned->devices[number]))
        return device_failed(error, DEVICE_CONSOLE, 0,
                             "%s: its file is also the console's, which would overwrite it", entry->name);
    return 0;
}

int tn_vm_add_console(struct vm_handle *handle, struct descriptor *descriptor)
{
    if (!handle->owned)
        return -ESTALE;
    handle->owned->console = *descriptor;
    descriptor->fd = -1;
    return 0;
}

int tn_kvm_open(struct vm_handle *handle, const char *path)
{
    struct owned_vm *owned = handle->owned;
    if (!owned)
        return -ESTALE;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    kvm_empty_kept();
    owned->machine.ops = &kvm_ops;
    *kvm_of(&owned->machine) = KVM_MACHINE_NONE;
    kvm_of(&owned->machine)->kvm_fd = fd;
    return fd;
}

int tn_kvm_create_vm(struct vm_handle *handle, unsigned long request)
{
    if (!handle->owned)
        return -ESTALE;
    struct kvm_machine *kvm = kvm_of(&handle->owned->machine);
    do
        kvm->vm_fd = ioctl(kvm->kvm_fd, request, 0);
    while (kvm->vm_fd < 0 && errno == EINTR); /* a signal came; its handler has run by now */
    return kvm->vm_fd < 0 ? -errno : kvm->vm_fd;
}

/* The operations of a machine that has been made. NULL: there is none, or the handle is closed. */
static const struct machine_ops *ops_of(const struct vm_handle *handle)
{
    return handle->owned ? handle->owned->machine.ops : NULL;
}

int tn_write_boot_info(struct vm_handle *handle, const struct machine_plan *plan)
{
    if (!ops_of(handle))
        return -ESTALE;
    ops_of(handle)->write_boot_info(&handle->owned->machine, plan);
    return 0;
}

const void *tn_run_console(struct vm_handle *handle, const struct vm_event *event)
{
    return ops_of(handle) ? ops_of(handle)->console(&handle->owned->machine, event) : NULL;
}

int tn_vm_keeps(struct vm_handle *handle)
{
    return ops_of(handle) && ops_of(handle)->keep;
}

int tn_vm_keep(struct vm_handle *handle, int template_fd)
{
    return ops_of(handle) ? ops_of(handle)->keep(&handle->owned->machine, template_fd) : -ESTALE;
}

int tn_vm_reset(struct vm_handle *handle)
{
    return ops_of(handle) ? ops_of(handle)->reset(&handle->owned->machine) : -ESTALE;
}

int tn_cpu_state(struct vm_handle *handle, uint32_t parts, struct cpu_state *state)
{
    USE(owned, handle, true);
    return owned->machine.ops->get_cpu_state(&owned->machine, parts, state);
}

int tn_cpu_state_set(struct vm_handle *handle, uint32_t parts, const struct cpu_state *state)
{
    USE(owned, handle, true);
    const struct machine_ops *ops = owned->machine.ops;
    return ops->set_cpu_state ? ops->set_cpu_state(&owned->machine, parts, state) : -EOPNOTSUPP;
}

/* ---- a run */

/* Call it with a use. NEW becomes RUNNING, with its time limit. */
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
    answer = time_limit_begin(&owned->limit, owned->vm, limit_ns);
    if (answer) {
        pthread_mutex_lock(&handles);
        owned->state = NEW;
        pthread_mutex_unlock(&handles);
    }
    return answer;
}

/* Call it with `handles` held. Makes the descriptor that reports the end of the run when it is first
 * requested. *copy gets a duplicate. 0 or -errno. */
static int copy_done(struct owned_vm *owned, struct descriptor *copy)
{
    if (copy->fd >= 0)
        return 0;
    if (owned->done_fd < 0)
        owned->done_fd = eventfd(owned->end_reported, EFD_CLOEXEC | EFD_NONBLOCK);
    copy->fd = owned->done_fd < 0 ? -1 : fcntl(owned->done_fd, F_DUPFD_CLOEXEC, 0);
    return copy->fd < 0 ? -errno : 0;
}

int tn_done(struct vm_handle *handle, struct descriptor *done)
{
    USE(owned, handle, false);
    pthread_mutex_lock(&handles);
    const int answer = copy_done(owned, done);
    pthread_mutex_unlock(&handles);
    return answer;
}

/* Reports that the run has ended, and that Python has its result. */
static void tell_end(struct owned_vm *owned)
{
    const uint64_t one = 1;
    pthread_mutex_lock(&handles);
    owned->end_reported = true;
    if (owned->done_fd >= 0)
        (void)!write(owned->done_fd, &one, sizeof one);
    pthread_mutex_unlock(&handles);
}

static void end(struct owned_vm *owned)
{
    time_limit_end(&owned->limit);
    pthread_mutex_lock(&handles);
    owned->state = ENDED;
    owned->runner = 0;
    owned->turn = NULL;
    pthread_mutex_unlock(&handles);
}

int tn_run_begin(struct vm_handle *handle, uint64_t limit_ns, int *turn)
{
    USE(owned, handle, false);
    const int answer = begin(owned, limit_ns, false);
    if (!answer) {
        owned->turn = turn;
        *turn = 1;
    }
    return answer;
}

int tn_run(struct vm_handle *handle, struct run_report *report)
{
    int answer;
    struct owned_vm *owned = use(handle, false, &answer);
    if (!owned) {
        vm_release_signals();
        return answer;
    }
    struct machine *machine = &owned->machine;
    machine->ops->run(machine);
    vm_release_signals();
    report->event = *owned->vm->event;
    report->over = event_ends_run(report->event.kind);
    if (report->over) {
        time_limit_end(&owned->limit);
        report->timed_out = owned->limit.timed_out;
        if (report->event.kind != EVENT_SETUP_FAILED)
            report->isolation = machine->ops->isolation(machine);
        report->shared = *owned->vm->shared;
        if (!owned->started) /* else the thread stores its result first */
            end(owned);
    }
    unuse(owned);
    return 0;
}

void tn_run_leave(struct vm_handle *handle, const int *turn)
{
    int answer;
    vm_release_signals();
    struct owned_vm *owned = use(handle, false, &answer);
    if (!owned)
        return;
    if (owned->turn == turn)
        end(owned);
    if (*turn)
        tell_end(owned);
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
    tell_end(start.owned);
    unuse(start.owned);
    return NULL;
}

/* Python code runs on this thread, so its stack has the size of Python's threads. */
static int start_thread(struct owned_vm *owned, struct start start, struct descriptor *done)
{
    struct start *argument = malloc(sizeof *argument);
    struct descriptor copy = {-1};
    pthread_mutex_lock(&handles);
    int error = -copy_done(owned, &copy);
    pthread_mutex_unlock(&handles);
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
        *done = copy;
        return 0;
    }
    tn_descriptor_close(&copy);
    free(argument);
    return -error;
}

/* Nothing has run: makes the VM as new. */
static void take_back_start(struct owned_vm *owned)
{
    time_limit_end(&owned->limit);
    runner_of(owned->vm)->signals_elsewhere = false;
    pthread_mutex_lock(&handles);
    owned->started = false;
    owned->state = NEW;
    pthread_mutex_unlock(&handles);
}

int tn_start(struct vm_handle *handle, uint64_t limit_ns, uint64_t key, void (*body)(uint64_t),
             struct descriptor *done, int *turn)
{
    int answer;
    struct owned_vm *owned = use(handle, false, &answer); /* becomes the thread's use, if one is made */
    if (!owned)
        return answer;
    answer = begin(owned, limit_ns, true);
    if (!answer) {
        runner_of(owned->vm)->signals_elsewhere = true;
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

int tn_stop(struct vm_handle *handle)
{
    USE(owned, handle, false);
    vm_stop(owned->vm);
    return 0;
}

int tn_leave_headers(struct vm_handle *handle)
{
    USE(owned, handle, false);
    net_leave_headers(owned->vm);
    return 0;
}

int tn_look(struct vm_handle *handle, struct vm_shared *copy)
{
    USE(owned, handle, false);
    *copy = *owned->vm->shared;
    return 0;
}

int64_t tn_read(struct vm_handle *handle, uint64_t gpa, void *to, uint64_t len)
{
    USE(owned, handle, false);
    return owned->machine.ops->read(&owned->machine, gpa, to, len);
}

int64_t tn_write(struct vm_handle *handle, uint64_t gpa, const void *from, uint64_t len)
{
    USE(owned, handle, false);
    return owned->machine.ops->write(&owned->machine, gpa, from, len);
}

int tn_pid(struct vm_handle *handle, int *pid)
{
    USE(owned, handle, false);
    const struct machine_ops *ops = owned->machine.ops;
    *pid = ops->pid ? ops->pid(&owned->machine) : owned->process;
    return 0;
}

int tn_isolation(struct vm_handle *handle, uint32_t *layers)
{
    USE(owned, handle, false);
    *layers = owned->machine.ops->isolation(&owned->machine);
    return 0;
}

int tn_net_news(struct vm_handle *handle, uint32_t *next, char *text)
{
    USE(owned, handle, false);
    return net_news(owned->vm, next, net_attach_here, text);
}
