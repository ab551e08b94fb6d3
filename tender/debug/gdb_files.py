"""The file that gdb may read through the connection: the image, and no other.

gdb asks for it by the name that qXfer:exec-file gave, when it was started without one. It opens it several times, for
the program, for its symbols and to compare it, and closes each on its own: each open has a handle of its own.
Source: "File-I/O Remote Protocol Extension" and "Host I/O Packets" of appendix E of gdb's manual.
"""

import os
import struct
from errno import EBADF, EINVAL, EMFILE, ENOENT, EROFS

from tender.debug.gdb_packets import from_hex, number, numbers

_HANDLES = range(3, 3 + 64)
_PIECE_BYTES = 0xF000
_STAT = struct.Struct(">7I3Q3I")  # struct fio_stat of gdb's include/gdb/fileio.h


class ImageFile:
    """Answers the packets vFile:...

    Args:
        name: What qXfer:exec-file gives.
        descriptor: That file, open for reading; -1: there is none.
    """

    def __init__(self, name: str, descriptor: int) -> None:
        self._name, self._descriptor = name, descriptor
        self._opened: set[int] = set()

    def answer(self, words: bytes) -> bytes | None:
        """Returns the answer to `vFile:WORDS`; None: it is not served."""
        operation, _, rest = words.partition(b":")
        serve = {
            b"setfs": self._setfs,
            b"open": self._open,
            b"pread": self._pread,
            b"fstat": self._fstat,
            b"close": self._close,
        }.get(operation)
        return serve(rest) if serve else None

    def _setfs(self, rest: bytes) -> bytes:
        return b"F0"

    def _open(self, rest: bytes) -> bytes:
        path, flags, _mode = rest.split(b",")
        if self._descriptor < 0 or from_hex(path) != os.fsencode(self._name):
            return _failed(ENOENT)
        if number(flags) != 0:  # FILEIO_O_RDONLY
            return _failed(EROFS)
        handle = next((it for it in _HANDLES if it not in self._opened), None)
        if handle is None:
            return _failed(EMFILE)
        self._opened.add(handle)
        return b"F%x" % handle

    def _pread(self, rest: bytes) -> bytes:
        handle, count, offset = numbers(rest)
        if handle not in self._opened:
            return _failed(EBADF)
        if offset >= 1 << 63:
            return _failed(EINVAL)
        try:
            data = os.pread(self._descriptor, min(count, _PIECE_BYTES), offset)
        except OSError as error:
            return _failed(error.errno or EINVAL)
        return b"F%x;" % len(data) + data

    def _fstat(self, rest: bytes) -> bytes:
        if number(rest) not in self._opened:
            return _failed(EBADF)
        it = os.fstat(self._descriptor)
        low = 0xFFFFFFFF
        data = _STAT.pack(
            *(it.st_dev & low, it.st_ino & low, it.st_mode & low, it.st_nlink & low, it.st_uid, it.st_gid, 0),
            *(it.st_size, it.st_blksize, it.st_blocks),
            *(int(when) & low for when in (it.st_atime, it.st_mtime, it.st_ctime)),
        )
        return b"F%x;" % len(data) + data

    def _close(self, rest: bytes) -> bytes:
        if number(rest) not in self._opened:
            return _failed(EBADF)
        self._opened.remove(number(rest))
        return b"F0"


def _failed(errno: int) -> bytes:
    return b"F-1,%x" % errno
