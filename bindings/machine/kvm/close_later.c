#define _GNU_SOURCE
#include "close_later.h"

#include <stdatomic.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "quiet_thread.h"

#define STACK_BYTES 0x8000

static atomic_int under_way;

static void *close_it(void *fd)
{
    (void)prctl(PR_SET_NAME, "tender-close");
    close((int)(intptr_t)fd);
    atomic_fetch_sub(&under_way, 1);
    return NULL;
}

/* A fork has none of these threads. Its count stays too high by the closes that were running, so it closes
 * immediately sooner. */
void close_later(int fd)
{
    if (atomic_fetch_add(&under_way, 1) < CLOSES_MAX &&
        quiet_thread(NULL, STACK_BYTES, close_it, (void *)(intptr_t)fd) == 0)
        return;
    atomic_fetch_sub(&under_way, 1);
    close(fd);
}
