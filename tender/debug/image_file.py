"""Opens the file of a guest's image: a regular file of a bounded size, whatever a core or a process says its name is.

A device has no end and may do something when it is opened, a FIFO makes its reader wait, and a name may stand for
another file at the next moment. So the file is checked after it was opened, and it is opened without waiting.
"""

import hashlib
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EFBIG, EINVAL
from functools import lru_cache
from io import FileIO

IMAGE_MAX = 4 << 30
"""No guest has more memory."""

_NOTES_MAX = 64 << 10
_PT_NOTE, _NT_GNU_BUILD_ID = 4, 3


def open_without_waiting(path: str, flags: int = os.O_RDONLY) -> int:
    """Opens a file and returns its descriptor. A FIFO does not make us wait. Raises OSError and ValueError."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


@contextmanager
def open_image(path: str) -> Iterator[FileIO]:
    """Opens an image. Raises OSError: it cannot be read, is no regular file or is too large; ValueError for a zero byte."""
    with open(path, "rb", buffering=0, opener=open_without_waiting) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError(EINVAL, "not a regular file")
        if about.st_size > IMAGE_MAX:
            raise OSError(EFBIG, os.strerror(EFBIG))
        yield file


def digest_of(file: FileIO) -> str:
    """Returns the SHA-256 of an open file in hexadecimal."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def facts_of_file(path: str) -> tuple[str, str]:
    """Returns the build id and the SHA-256 of an image, both in hexadecimal; empty if they are not known."""
    if not path:
        return "", ""
    with suppress(OSError, ValueError, struct.error):
        about = os.stat(path)
        if stat.S_ISREG(about.st_mode):  # else it is not even opened
            return _of_this_file(path, about.st_ino, about.st_size, about.st_mtime_ns)
    return "", ""


@lru_cache(maxsize=4)
def _of_this_file(path: str, inode: int, size: int, time_ns: int) -> tuple[str, str]:
    with open_image(path) as file:
        return build_id_of(file.fileno()), digest_of(file)


def build_id_of(fd: int) -> str:
    """Returns the build id of an ELF file, or an empty text.

    Source: the ELF specification; the note is that of binutils' --build-id.
    """
    with suppress(struct.error):
        head = os.pread(fd, 64, 0)
        if head[:6] != b"\x7fELF\x02\x01":
            return ""
        headers_at, size, count = (
            struct.unpack_from(form, head, at)[0] for form, at in (("<Q", 32), ("<H", 54), ("<H", 56))
        )
        for i in range(min(count, 128)):
            header = os.pread(fd, 56, headers_at + i * size)
            kind, _, offset, _, _, file_bytes = struct.unpack_from("<IIQQQQ", header)
            if kind == _PT_NOTE and (found := _in_notes(os.pread(fd, min(file_bytes, _NOTES_MAX), offset))):
                return found
    return ""


def _in_notes(notes: bytes) -> str:
    at = 0
    while at + 12 <= len(notes):
        name_bytes, data_bytes, kind = struct.unpack_from("<III", notes, at)
        data_at = at + 12 + (name_bytes + 3 & -4)
        if kind == _NT_GNU_BUILD_ID and notes[at + 12 : at + 16] == b"GNU\0":
            return notes[data_at : data_at + min(data_bytes, 64)].hex()
        at = data_at + (data_bytes + 3 & -4)
    return ""
