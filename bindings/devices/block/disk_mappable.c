/*
 * Decides which disks may be mapped (disk_map.h). It is a file of its own because the sandbox's
 * program, which links disk_map.c, may not make these system calls.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/sysinfo.h>
#include <sys/vfs.h>

#include "disk_map.h"
#include "tender_abi.h"

#define PART_OF_MEMORY 8

/* Returns at least 1024, so that mapping also works on a host that does not report its memory. */
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
    if (about.f_type == V9FS_MAGIC) /* without its cache, a mapping and a read may have different content */
        return false;
    /* On tmpfs, a read of a hole through a mapping fills it: a guest that only reads would take memory. */
    return !(read_only && about.f_type == TMPFS_MAGIC);
}

uint32_t disk_mappable_pages(int fd, bool read_only)
{
    return is_mappable(fd, read_only) ? page_limit() : 0;
}
