/* What musl's headers lack of Linux, included before every file of a command that is built with it. */
#ifndef TENDER_LAUNCHER_MUSL_H
#define TENDER_LAUNCHER_MUSL_H

#ifndef __ASSEMBLER__
#include <linux/fs.h> /* RWF_NOWAIT */
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

static inline ssize_t pwritev2(int fd, const struct iovec *pieces, int count, off_t offset, int flags)
{
    /* The kernel takes the offset in two halves; the high one is ignored where long has 64 bits. */
    return syscall(SYS_pwritev2, fd, pieces, count, offset, 0, flags);
}
#endif

#endif
