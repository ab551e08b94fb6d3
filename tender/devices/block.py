"""What to do about a file or a block device that cannot be a guest's disk.

C says why it cannot be one (bindings/devices/block/disk.c).
"""

from errno import EACCES, ENOENT, EROFS, ETXTBSY

from tender.config import BlockDevice, BlockFd
from tender.cures import SUFFIXES, cure
from tender.errors import Hints
from tender.native import CData, lib
from tender.printable import quoted

_CODES = {
    lib.DEVICE_LOCKED: "block-locked",
    lib.DEVICE_BLOCK_MISALIGNED: "block-misaligned",
    lib.DEVICE_BLOCK_SMALL: "block-small",
    lib.DEVICE_BLOCK_FORMAT: "block-format",
}
_OPEN_HINTS = {ENOENT: "make it: truncate -s 16M {path}", ETXTBSY: "it is being executed; give another file"}
_OPEN_CURES = {EACCES: "disk-denied", EROFS: "disk-read-only-files"}
_HINTS = {
    lib.DEVICE_BLOCK_APPENDS: "open it without O_APPEND",
    lib.DEVICE_BLOCK_DIRECT: "open it without O_DIRECT",
    lib.DEVICE_BLOCK_OUTPUT: "give the console and messages another file than the disk's",
    lib.DEVICE_PATH_ONLY: "open it with O_RDWR, without O_PATH",
}
_CURES = {
    lib.DEVICE_LOCKED: "disk-locked",
    lib.DEVICE_BLOCK_WRITE_ONLY: "disk-write-only",
    lib.DEVICE_BLOCK_READ_ONLY: "disk-read-only",
    lib.DEVICE_BLOCK_SEALED: "disk-sealed",
    lib.DEVICE_BLOCK_FORMAT: "disk-format",
}


def way_out(error: CData, shown: str, device: BlockDevice | None, entry: CData) -> tuple[str, Hints]:
    """Returns the code of an error, and what to type."""
    is_open = error.problem == lib.DEVICE_BLOCK_OPEN
    named = _OPEN_CURES.get(error.os_error) if is_open else _CURES.get(error.problem)
    hint = _OPEN_HINTS.get(error.os_error) if is_open else _HINTS.get(error.problem)
    if is_open and error.os_error == ENOENT and shown.endswith(SUFFIXES):
        named = "disk-suffix"
    if named == "disk-denied" and device is not None and device.read_only:
        named, hint = None, "your user may not read it: check its mode, and those of its directories"
    if entry and error.problem in (lib.DEVICE_BLOCK_MISALIGNED, lib.DEVICE_BLOCK_SMALL):
        capacity, over = entry.u.block.capacity, entry.u.block.capacity % entry.u.block.block_size
        hint = f"it has {capacity} bytes{f': {over} too many' if over else ''}"
    code = _CODES.get(error.problem, "device-block")
    if named:
        source = "FILE" if isinstance(device, BlockFd) else quoted(shown)
        return code, cure(named, path=quoted(shown), source=source)
    return code, {"hint": (hint or "").format(path=quoted(shown))}
