/*
 * The host's side of a sandboxed VM: the memory shared with tender-sandbox, the process, and the wait for it.
 *
 * One thread of this process makes all the children (spawn.c has the reason). Everything else belongs to the
 * struct sandbox: its caller ensures that one thread at a time uses it (except sandbox_read() and
 * sandbox_isolation()).
 */
#ifndef TENDER_SANDBOX_SPAWN_H
#define TENDER_SANDBOX_SPAWN_H

#include <pthread.h>

#include "child.h"
#include "config.h"
#include "elf_image.h"

struct sandbox {
    struct vm *vm;
    uint8_t *mapping; /* SANDBOX_VM_BYTES */
    int vm_fd;
    int control_fd;
    int pidfd; /* -1: not spawned, or reaped */
    int pid;
    int parent; /* the process whose child it is; a fork of that process has only copies of the descriptors */
    uint32_t isolation;
    bool started;
    pthread_mutex_t control_lock; /* held to take a byte from control_fd; guards `ready` and `isolation` */
    _Atomic bool ready;           /* SANDBOX_READY has arrived: later messages may come from the guest */
    /* This process will become the guest's (become.h). Of the fields above, only vm, mapping and vm_fd are
     * used. */
    bool becomes;
    bool stopping;
    bool stopped_late;
    uint64_t kill_at_ns;
    struct vm_event event; /* a checked copy, which Python may rely on */
};

/* Makes the shared memory for `vm`; vm->shared then lies in it. `path`: the image's file, or NULL. It becomes
 * a part of that memory's name, which a debugger sees in /proc, and which a guest has no system call to
 * read. 0 or -errno. */
int sandbox_init(struct sandbox *sandbox, struct vm *vm, const char *path);

/* The memory for start_state_write_boot_info(). */
uint8_t *sandbox_boot_info(struct sandbox *sandbox);

/*
 * Starts `program`, which prepares everything and waits for the first sandbox_run(). `name` is shown in
 * process lists. 0 or -errno.
 */
int sandbox_spawn(struct sandbox *sandbox, const struct elf_image *image, int template_fd, uint64_t mem_bytes,
                  const char *program, const char *name);

/* The same for a process that has one thread, ends with it and makes no other sandbox: it starts no thread.
 * `observed`: the program keeps its memory after its end. */
int sandbox_spawn_here(struct sandbox *sandbox, const struct elf_image *image, int template_fd,
                       uint64_t mem_bytes, const char *program, const char *name, bool observed);

/* Parts of it. sandbox_prepare() fills in the config, and `spawn` with the program's descriptor, 0 or -errno
 * (`into_file`: the program will write to a file that is not a disk). sandbox_name_fds() adds the descriptors
 * that every program has. */
int sandbox_prepare(struct sandbox *sandbox, const struct elf_image *image, uint64_t mem_bytes,
                    const char *program, const char *name, bool into_file, struct spawn *spawn);
void sandbox_name_fds(struct spawn *spawn, const struct sandbox *sandbox, int template_fd);

/*
 * Tries to get as many of `kinds` (CLONE_NEW...) as possible, from most to least. attempt() gets a set. It
 * returns 0 if it got the set, or if a smaller set would not help; otherwise an errno. Returns the set of the
 * last attempt; 0: no set was accepted.
 */
uint32_t namespaces_try(uint32_t kinds, int (*attempt)(uint32_t set, void *of), void *of);

/* Changes the user of the calling thread, and with it the child's, by unprivileged_begin(). */
struct unprivileged;
void spawn_change_user(struct spawn *spawn, struct unprivileged *saved);

/* Runs until Python must decide; sandbox->event says why. */
void sandbox_run(struct sandbox *sandbox);

/* The layers in force, enum isolation_layer. It waits until the program has reported them. A program whose
 * set-up fails has none of its own, and sandbox_run() returns the reason. Any thread may call it, also while
 * another thread is in sandbox_run(). */
uint32_t sandbox_isolation(struct sandbox *sandbox);

/* Copies guest memory as long as the process lives. Memory that the process itself may not write is not
 * written. Returns the number of bytes or -errno. Any thread may call it. */
int64_t sandbox_read(const struct sandbox *sandbox, gpa_t gpa, void *to, uint64_t len);
int64_t sandbox_write(const struct sandbox *sandbox, gpa_t gpa, const void *from, uint64_t len);

/* Kills and reaps the process, and unmaps. In a fork of its parent it only closes and unmaps the copies. */
void sandbox_release(struct sandbox *sandbox);

#endif
