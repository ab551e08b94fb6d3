/* Which disks may be memory; disk_map.h. Apart from disk_map.c, for the sandbox's program has none of these
 * calls. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/sysinfo.h>
#include <sys/vfs.h>

#include "disk_map.h"
#include "tender_abi.h"

#define PART_OF_MEMORY 8

/* At least a few, so that a host that does not tell serves too. */
static uint32_t page_limit(void)
{
    struct sysinfo host;
    const uint64_t bytes = sysinfo(&host) == 0 ? (uint64_t)host.totalram * host.mem_unit : 0;
    const uint64_t pages = bytes / PART_OF_MEMORY / HVT_PAGE_BYTES;
    return pages < 1024 ? 1024 : pages < UINT32_MAX ? (uint32_t)pages : UINT32_MAX;
}

static bool is_mappable(int fd, bool read_only)
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

uint32_t disk_mappable_pages(int fd, bool read_only)
{
    return is_mappable(fd, read_only) ? page_limit() : 0;
}
