/*
 * The host's side of a sandboxed VM: the memory shared with tender-sandbox, the process, and waiting for it.
 *
 * One thread of this process makes all the children (spawn.c says why). Everything else belongs to the
 * struct sandbox: its caller sees to it that one thread at a time uses it (sandbox_read() and
 * sandbox_isolation() apart).
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
    int parent; /* the process whose child it is: a fork of that has copies of the descriptors alone */
    uint32_t isolation;
    bool started;
    pthread_mutex_t hearing; /* held by who takes a word from control_fd, for `ready` and `isolation` */
    _Atomic bool ready;      /* SANDBOX_READY was heard: what is said from here on may be the guest's word */
    bool becomes; /* this process is to be the guest's (become.h): none of the above but vm, mapping, vm_fd */
    bool stopping;
    bool stopped_late;
    uint64_t kill_at_ns;
    struct vm_event event; /* a checked copy: what Python may believe */
};

/* Memory for `vm`, whose `shared` then lies in it. 0 or -errno. */
int sandbox_init(struct sandbox *sandbox, struct vm *vm);

/* Where start_state_write_boot_info() writes. */
uint8_t *sandbox_boot_info(struct sandbox *sandbox);

/*
 * Starts `program`; it prepares everything and waits for the first sandbox_run(). `name` is what a process
 * list shows. 0 or -errno.
 */
int sandbox_spawn(struct sandbox *sandbox, const struct elf_image *image, int template_fd, uint64_t mem_bytes,
                  const char *program, const char *name);

/* The same for a process that has one thread, ends with it and makes no other sandbox: no thread is made. */
int sandbox_spawn_here(struct sandbox *sandbox, const struct elf_image *image, int template_fd,
                       uint64_t mem_bytes, const char *program, const char *name);

/* Parts of it: the config, and `spawn` with the program's descriptor, 0 or -errno (`into_file`: it
 * will write to a file that is no disk); the descriptors that any program has. */
int sandbox_prepare(struct sandbox *sandbox, const struct elf_image *image, uint64_t mem_bytes,
                    const char *program, const char *name, bool into_file, struct spawn *spawn);
void sandbox_name_fds(struct spawn *spawn, const struct sandbox *sandbox, int template_fd);

/*
 * As many of `kinds` (CLONE_NEW...) as can be had, from most to least. attempt() gets a set, and returns an
 * errno, or 0: it has them, or fewer would not help. The set of the last attempt; 0: none was had.
 */
uint32_t namespaces_try(uint32_t kinds, int (*attempt)(uint32_t set, void *of), void *of);

/* Runs until Python must decide; sandbox->event says what. */
void sandbox_run(struct sandbox *sandbox);

/* The layers that stand, enum isolation_layer. It waits until the program has told; a program that cannot be
 * set up has none of its own, and sandbox_run() says why. Any thread, also while another is in sandbox_run().
 */
uint32_t sandbox_isolation(struct sandbox *sandbox);

/* Copies guest memory as long as the process lives; what it may not write itself is not written. Bytes or
 * -errno. Any thread. */
int64_t sandbox_read(const struct sandbox *sandbox, gpa_t gpa, void *to, uint64_t len);
int64_t sandbox_write(const struct sandbox *sandbox, gpa_t gpa, const void *from, uint64_t len);

/* Kills and reaps the process, unmaps. In a fork of its parent it closes and unmaps copies, and no more. */
void sandbox_release(struct sandbox *sandbox);

#endif
