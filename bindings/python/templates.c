/*
 * An image's templates: memfds that VMs map privately, one for each memory size and backend
 * (architecture.md).
 *
 * The base holds only the segments. It becomes the first template; the others are copies of it. If a fork has
 * shared the base between processes, it is only copied: otherwise each process would finish and seal it for
 * the others.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <unistd.h>

#include "native.h"
#include "owner.h"
#include "patch.h"
#include "start_state.h"

struct template {
    uint64_t mem_bytes;
    bool patched;
    int fd;
    struct template *next;
};

struct owned_templates {
    int base_fd;
    uint64_t bytes;
    unsigned forks; /* the count when the base was made */
    bool base_patched;
    struct template *first; /* NULL: the base is not a template yet */
};

static pthread_mutex_t templates_lock = PTHREAD_MUTEX_INITIALIZER; /* one is made at a time */
static bool watched;
static unsigned forks; /* of this process and its ancestors, since the first image */

static void before_fork(void)
{
    pthread_mutex_lock(&templates_lock);
    forks++;
}

static void after_fork(void)
{
    pthread_mutex_unlock(&templates_lock);
}

static void reset_lock(void)
{
    pthread_mutex_init(&templates_lock, NULL);
}

static int new_memfd(uint64_t bytes)
{
    int fd = memfd_create("tender-image", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)bytes) < 0) {
        int error = -errno;
        close(fd);
        return error;
    }
    return fd;
}

int owned_templates_make(struct image_handle *handle, uint64_t bytes, int *fd)
{
    pthread_mutex_lock(&templates_lock);
    if (!watched)
        watched = pthread_atfork(before_fork, after_fork, reset_lock) == 0;
    pthread_mutex_unlock(&templates_lock);
    struct owned_templates *owned = watched ? calloc(1, sizeof *owned) : NULL;
    if (!owned)
        return -ENOMEM;
    pthread_mutex_lock(&templates_lock);
    owned->forks = forks;
    pthread_mutex_unlock(&templates_lock);
    *fd = owned->base_fd = new_memfd(bytes);
    owned->bytes = bytes;
    if (owned->base_fd < 0) {
        free(owned);
        return *fd;
    }
    handle->owned = owned;
    return 0;
}

static int copy_data(int from, int to)
{
    off_t at = 0;
    for (;;) {
        at = lseek(from, at, SEEK_DATA);
        if (at < 0)
            return errno == ENXIO ? 0 : -errno; /* holes to the end */
        off_t end = lseek(from, at, SEEK_HOLE);
        if (end < 0 || lseek(to, at, SEEK_SET) < 0)
            return -errno;
        while (at < end)
            if (sendfile(to, from, &at, (size_t)(end - at)) <= 0)
                return errno ? -errno : -EIO;
    }
}

/* Returns the base, or a copy of it that the caller owns; -errno. */
static int raw_template(struct owned_templates *owned, bool patched)
{
    if (!owned->first && owned->forks == forks) {
        owned->base_patched = patched;
        return owned->base_fd;
    }
    int fd = new_memfd(owned->bytes);
    int error = fd < 0 ? fd : copy_data(owned->base_fd, fd);
    if (error && fd >= 0)
        close(fd);
    return error ? error : fd;
}

static int write_tables(const struct elf_image *image, int fd, uint64_t mem_bytes)
{
    uint8_t *low = mmap(NULL, HVT_GUEST_MIN_GPA, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (low == MAP_FAILED)
        return -errno;
    /* A copy of a template for another memory size has the tables of that size. */
    memset(low + HVT_PD_GPA, 0, HVT_PT_GPA - HVT_PD_GPA);
    start_state_write_tables(low, mem_bytes, image->extensions);
    munmap(low, HVT_GUEST_MIN_GPA);
    return 0;
}

/* Adds what the base, or a copy of it, lacks to be a template. */
static int finish(const struct owned_templates *owned, const struct elf_image *image, int fd,
                  uint64_t mem_bytes, bool patched, int *step)
{
    const bool is_patched = owned->first && owned->base_patched;
    int error = 0;
    *step = TEMPLATE_STEP_UNPATCH;
    if (is_patched && !patched)
        error = unpatch_call_sites(image, fd);
    if (error < 0)
        return error;
    *step = TEMPLATE_STEP_TABLES;
    error = write_tables(image, fd, mem_bytes);
    if (error < 0)
        return error;
    *step = TEMPLATE_STEP_PATCH;
    const int64_t patched_count = patched && !is_patched ? patch_call_sites(image, fd) : 0;
    if (patched_count < 0)
        return (int)patched_count;
    *step = TEMPLATE_STEP_SEAL;
    return fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0 ? -errno : 0;
}

static int find_or_make(struct owned_templates *owned, const struct elf_image *image, uint64_t mem_bytes,
                        bool patched, int *step)
{
    for (struct template *known = owned->first; known; known = known->next)
        if (known->mem_bytes == mem_bytes && known->patched == patched)
            return known->fd;
    struct template *made = malloc(sizeof *made);
    if (!made)
        return -ENOMEM;
    int fd = raw_template(owned, patched);
    int error = fd < 0 ? fd : finish(owned, image, fd, mem_bytes, patched, step);
    if (error < 0) {
        if (fd >= 0 && fd != owned->base_fd)
            close(fd);
        free(made);
        return error;
    }
    *made = (struct template){mem_bytes, patched, fd, owned->first};
    owned->first = made;
    return fd;
}

int tn_image_template(struct image_handle *handle, const struct elf_image *image, uint64_t mem_bytes,
                      int patched, struct descriptor *into, int *step)
{
    pthread_mutex_lock(&templates_lock);
    *step = TEMPLATE_STEP_COPY;
    int answer = handle->owned ? find_or_make(handle->owned, image, mem_bytes, patched != 0, step) : -ESTALE;
    if (answer >= 0) {
        *step = TEMPLATE_STEP_COPY;
        into->fd = fcntl(answer, F_DUPFD_CLOEXEC, 0);
        answer = into->fd < 0 ? -errno : 0;
    }
    pthread_mutex_unlock(&templates_lock);
    return answer;
}

void tn_image_close(struct image_handle *handle)
{
    pthread_mutex_lock(&templates_lock);
    struct owned_templates *owned = handle->owned;
    handle->owned = NULL;
    pthread_mutex_unlock(&templates_lock);
    if (!owned)
        return;
    close(owned->base_fd);
    for (struct template *one = owned->first, *next; one; one = next) {
        next = one->next;
        if (one->fd != owned->base_fd)
            close(one->fd);
        free(one);
    }
    free(owned);
}
