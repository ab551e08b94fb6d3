/* Which disks may be memory; disk_map.h. Apart from disk_map.c, for the sandbox's program has none of these
 * calls. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/vfs.h>

#include "disk_map.h"

bool disk_is_mappable(int fd, bool read_only)
{
    const int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || flags & (O_DIRECT | O_DSYNC | O_APPEND)) /* O_SYNC has the bit of O_DSYNC */
        return false;
    struct statfs about;
    if (fstatfs(fd, &about) < 0)
        return false;
    if (about.f_type == V9FS_MAGIC) /* without its cache, what is mapped is not what is read */
        return false;
    /* To read a hole through a mapping is to fill it, there: a guest that may only read would take memory. */
    return !(read_only && about.f_type == TMPFS_MAGIC);
}
