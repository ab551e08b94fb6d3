"""Attaching a file or block device as a guest's disk. Rules, lock and words are C (bindings/devices/block/disk.c)."""

import os
import time
from errno import ENOENT

from tender.config import BlockFd, BlockFile
from tender.cures import SUFFIXES, cure
from tender.errors import DeviceError
from tender.native import CData, answered, check, descriptor, ffi, lib
from tender.printable import quoted
from tender.values import Owner

_CODES = {
    lib.DEVICE_BLOCK_LOCKED: "block-locked",
    lib.DEVICE_BLOCK_MISALIGNED: "block-misaligned",
    lib.DEVICE_BLOCK_SMALL: "block-small",
    lib.DEVICE_BLOCK_FORMAT: "block-format",
}
_OPEN_HINTS = {2: "make it: truncate -s 16M {path}", 26: "it is being executed; give another file"}
_OPEN_CURES = {13: "disk-denied", 30: "disk-read-only-files"}
_HINTS = {
    lib.DEVICE_BLOCK_APPENDS: "open it without O_APPEND",
    lib.DEVICE_BLOCK_DIRECT: "open it without O_DIRECT",
    lib.DEVICE_BLOCK_OUTPUT: "give the console and messages another file than the disk's",
    lib.DEVICE_PATH_ONLY: "open it with O_RDWR, without O_PATH",
}
_CURES = {
    lib.DEVICE_BLOCK_LOCKED: "disk-locked",
    lib.DEVICE_BLOCK_WRITE_ONLY: "disk-write-only",
    lib.DEVICE_BLOCK_READ_ONLY: "disk-read-only",
    lib.DEVICE_BLOCK_SEALED: "disk-sealed",
    lib.DEVICE_BLOCK_FORMAT: "disk-format",
}


_LOOK_S = 0.05
"""Between two looks at a lock that another has."""


class Patience:
    """How long its holder waits for locks, all of them together."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def wait(self) -> bool:
        """Waits a moment; False if the time is over. Signals are handled, and may raise."""
        left = self._until - time.monotonic()
        if left > 0:
            time.sleep(min(left, _LOOK_S))
        return left > 0


class LockedFd(BlockFd):
    """The descriptor of a BlockAttachment, whose checks and lock hold for its duplicates."""


class BlockAttachment(Owner):
    """An open disk, with what the guest will see of it. It is closed with close(), or with the VM that took it."""

    def __init__(self, owner: CData, capacity: int, sector_size: int, read_only: bool) -> None:
        self.owner = owner
        self.capacity = capacity
        self.sector_size = sector_size
        self.read_only = read_only

    @property
    def fd(self) -> int:
        return int(self.owner.fd)

    def close(self) -> None:
        """Errors say no more than that the guest did not flush, and are passed over: the descriptor is gone, close(2)."""
        lib.tn_descriptor_close(self.owner)


def attach(name: str, device: BlockFile | BlockFd, patience: Patience) -> BlockAttachment:
    """Opens and locks `device` to serve as the guest's `name`; waits for another's lock as `patience` has it.

    Raises DeviceError if it cannot be opened, is neither a file nor a block device, is locked by another, or if its
    size is not a whole number of sectors, at least one.
    """
    disk = open_disk(device, patience)
    try:
        check_capacity(name, disk.capacity, disk.sector_size)
    except BaseException:
        disk.close()
        raise
    return disk


def open_disk(device: BlockFile | BlockFd, patience: Patience, *, shown: str = "") -> BlockAttachment:
    """The same, of whatever size; `shown` is the name of a descriptor in messages."""
    while True:
        try:
            return _open_disk(device, shown)
        except DeviceError as error:
            if error.code != "block-locked" or not patience.wait():
                raise


def _open_disk(device: BlockFile | BlockFd, shown: str) -> BlockAttachment:
    error, capacity, owner = ffi.new("struct device_error *"), ffi.new("uint64_t *"), descriptor()
    if isinstance(device, LockedFd):
        check(lib.tn_descriptor_duplicate(device.fd, owner), f"disk @{device.fd}")
        return BlockAttachment(owner, os.lseek(owner.fd, 0, 2), device.sector_size, device.read_only)
    if isinstance(device, BlockFile):
        shown = device.path
        if "\0" in shown:
            raise DeviceError(f"Could not open block device: {shown!r}: embedded null byte")
        path = _bytes(shown)
        answer = answered(
            lambda: lib.tn_block_open(path, device.read_only, device.raw, capacity, error, owner), error
        )
    else:
        shown = shown or f"@{device.fd}"
        name = _bytes(shown)
        answer = answered(
            lambda: lib.tn_block_duplicate(
                device.fd, name, device.read_only, device.raw, capacity, error, owner
            ),
            error,
        )
    if answer < 0:
        raise _refused(error, shown, device=device)
    return BlockAttachment(owner, int(capacity[0]), device.sector_size, device.read_only)


def check_capacity(name: str, capacity: int, sector_size: int) -> None:
    """Raises DeviceError unless it is a whole number of sectors, at least one."""
    error = ffi.new("struct device_error *")
    if lib.tn_block_check_capacity(_bytes(name), capacity, sector_size, error) < 0:
        many = f": {capacity % sector_size} too many" if capacity % sector_size else ""
        raise _refused(error, name, hint=f"it has {capacity} bytes{many}")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _refused(
    error: CData, shown: str, *, hint: str = "", device: BlockFile | BlockFd | None = None
) -> DeviceError:
    is_open = error.problem == lib.DEVICE_BLOCK_OPEN
    named = _OPEN_CURES.get(error.os_error) if is_open else _CURES.get(error.problem)
    if is_open and error.os_error == ENOENT and shown.endswith(SUFFIXES):
        named = "disk-suffix"
    if named == "disk-denied" and device is not None and device.read_only:
        named, hint = None, "your user may not read it: check its mode, and those of its directories"
    if named:
        source = "FILE" if isinstance(device, BlockFd) else quoted(shown)
        hints = cure(named, path=quoted(shown), source=source)
    else:
        text = _OPEN_HINTS.get(error.os_error) if is_open else _HINTS.get(error.problem)
        hints = {"hint": (text or hint).format(path=quoted(shown))}
    return DeviceError(
        ffi.string(error.text).decode("utf-8", "surrogateescape"),
        errno=error.os_error,
        code=_CODES.get(error.problem, "device-block"),
        **hints,
    )
