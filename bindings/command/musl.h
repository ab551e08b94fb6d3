/* What musl's headers lack of Linux. It is included before every file of a command that is built with
 * musl. */
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

/* musl has it from 1.2.5 on. With another name, this function also works with earlier versions. */
static inline ssize_t pwritev2_by_number(int fd, const struct iovec *pieces, int count, off_t offset,
                                         int flags)
{
    /* The kernel takes the offset in two halves; the high half is ignored where long has 64 bits. */
    return syscall(SYS_pwritev2, fd, pieces, count, offset, 0, flags);
}
#define pwritev2 pwritev2_by_number

/* From 1.2.6 on, musl's pwrite() makes another system call, pwritev2 with RWF_NOAPPEND, for which the
 * command's filter kills the process. */
static inline ssize_t pwrite_by_number(int fd, const void *data, size_t len, off_t offset)
{
    return syscall(SYS_pwrite64, fd, data, len, offset);
}
#define pwrite pwrite_by_number
#endif

#endif
