"""Attaching a file or block device as a guest's disk."""

import posix  # not os: its ABCs cost a tenth of the command's start
import stat

from tender.config import BlockFd, BlockFile
from tender.errors import DeviceError

_SEEK_END = 2
_HINTS = {
    2: "make it: truncate -s 16M {path}",
    13: "you may not open it so: check its mode, or give it read-only: {path}:ro",
    30: "the file system is read-only: {path}:ro",
    26: "it is being executed; give another file",
}


class BlockAttachment:
    """An open disk, with what the guest will see of it. close() it when done."""

    def __init__(self, fd: int, capacity: int, sector_size: int, read_only: bool) -> None:
        self.fd = fd
        self.capacity = capacity
        self.sector_size = sector_size
        self.read_only = read_only

    def close(self) -> None:
        if self.fd >= 0:
            posix.close(self.fd)
            self.fd = -1


def attach(name: str, device: BlockFile | BlockFd) -> BlockAttachment:
    """Opens `device` to serve as the guest's `name`.

    Raises DeviceError if it cannot be opened, is neither a file nor a block device, or if its size is not a
    whole number of sectors, at least one.
    """
    if isinstance(device, BlockFile):
        fd, shown = open_file(device), device.path
    else:
        shown = f"@{device.fd}"
        try:
            fd = posix.dup(device.fd)
        except OSError as error:
            raise _open_error(shown, error.errno or 0) from error
    try:
        capacity = capacity_of(fd, shown)
        check_capacity(name, capacity, device.sector_size)
    except BaseException:
        posix.close(fd)
        raise
    return BlockAttachment(fd, capacity, device.sector_size, device.read_only)


def open_file(device: BlockFile) -> int:
    """A descriptor of the file, the caller's to close. Raises DeviceError."""
    access = posix.O_RDONLY if device.read_only else posix.O_RDWR
    try:
        # O_NONBLOCK: a FIFO by mistake must not hang here; it means nothing for files and disks
        return posix.open(device.path, access | posix.O_CLOEXEC | posix.O_NONBLOCK)
    except OSError as error:
        raise _open_error(device.path, error.errno or 0) from error
    except ValueError as error:
        raise DeviceError(f"Could not open block device: {device.path!r}: {error}") from error


def _open_error(path: str, errno: int) -> DeviceError:
    return DeviceError(
        f"Could not open block device: {path}: {posix.strerror(errno)}",
        errno=errno,
        hint=_HINTS.get(errno, "").format(path=path),
        code="device-block",
    )


def capacity_of(fd: int, shown: str) -> int:
    """Its size in bytes; `shown` is its name in the DeviceError for what is no disk."""
    mode = posix.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise DeviceError(
            f"Could not open block device: {shown}: not a file or a block device", code="device-block"
        )
    return posix.lseek(fd, 0, _SEEK_END)


def check_capacity(name: str, capacity: int, sector_size: int) -> None:
    """Raises DeviceError unless it is a whole number of sectors, at least one."""
    if capacity % sector_size:
        raise DeviceError(
            f"{name}: Backing storage size must be block aligned ({sector_size} bytes)",
            code="block-misaligned",
            hint=f"it has {capacity} bytes: {capacity % sector_size} too many",
        )
    if capacity < sector_size:
        raise DeviceError(
            f"{name}: Backing storage must be at least 1 block ({sector_size} bytes) in size",
            code="block-small",
            hint=f"it has {capacity} bytes",
        )
