"""A file system with one file that stops answering. It speaks FUSE's protocol as far as one file needs it (linux/fuse.h)."""

import contextlib
import ctypes
import os
import struct
import threading
from pathlib import Path
from types import TracebackType

_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _SETLK = 1, 2, 3, 14, 15, 32
_RELEASE, _FLUSH, _INIT, _INTERRUPT, _BATCH_FORGET = 18, 25, 26, 36, 42
_ENOENT, _EINTR, _ENOSYS = 2, 4, 38
_REQUEST = struct.Struct("<IIQQIIIHH")  # fuse_in_header
_MNT_FORCE, _MNT_DETACH = 1, 2
CALLS = {"open": _OPEN, "read": _READ, "lock": _SETLK}


class HangingFile:
    """`path`: a file with these bytes on its own file system, which is mounted at `where`.

    One kind of call on it is never answered, beginning with open number `since`. A signal to the waiting process ends the
    call only if the file is `interruptible`, as file systems of libfuse can be. Raises OSError where the file system cannot
    be mounted.
    """

    def __init__(
        self, where: Path, data: bytes, call: str, *, since: int = 1, interruptible: bool = True
    ) -> None:
        self.path = where / "file"
        self.waited = threading.Event()
        self._where = os.fsencode(where)
        self._data = data
        self._call = CALLS[call]
        self._opens_to_come = since
        self._interruptible = interruptible
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self._libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self._device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other"
        if self._libc.mount(b"test", self._where, b"fuse", 0, options.encode()) < 0:
            error = ctypes.get_errno()
            os.close(self._device)
            raise OSError(error, os.strerror(error), "fuse")
        self._server = threading.Thread(target=self._serve, daemon=True)
        self._server.start()

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._device, 1 << 18)
            except OSError:  # ENODEV: it is not mounted any more
                return
            _, operation, number, node, *_ = _REQUEST.unpack_from(request)
            body = request[_REQUEST.size :]
            self._opens_to_come -= operation == _OPEN
            if operation == self._call and node != 1 and self._opens_to_come <= 0:
                self.waited.set()
                continue
            if operation == _INTERRUPT:
                if self._interruptible:
                    self._answer(struct.unpack_from("<Q", body)[0], error=_EINTR)
                continue
            if operation in (_FORGET, _BATCH_FORGET):
                continue
            found = self._result(operation, node, body)
            self._answer(number, found or b"", error=_ENOSYS if found is None else 0)

    def _result(self, operation: int, node: int, body: bytes) -> bytes | None:
        if operation == _INIT:  # version 7.31; FUSE_POSIX_LOCKS: the server handles locks
            return struct.pack("<IIIIHHIIHHI7I", 7, 31, 65536, 0x2, 12, 10, 65536, 1, 32, 0, 0, *[0] * 7)
        if operation == _LOOKUP:
            return struct.pack("<QQQQII", 2, 1, 0, 0, 0, 0) + self._attributes(2)
        if operation == _GETATTR:
            return struct.pack("<QII", 0, 0, 0) + self._attributes(node)
        if operation == _OPEN:
            return struct.pack("<QII", 1, 0, 0)
        if operation == _READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            return self._data[offset : offset + size]
        if operation in (_RELEASE, _FLUSH, _SETLK):
            return b""
        return None

    def _attributes(self, node: int) -> bytes:
        mode, size = (0o40755, 0) if node == 1 else (0o100666, len(self._data))
        return struct.pack(
            "<QQQQQQIIIIIIIIII", node, size, -(-size // 512), 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0
        )

    def _answer(self, number: int, body: bytes = b"", *, error: int = 0) -> None:
        with contextlib.suppress(OSError):  # ENOENT: the process that asked has ended
            os.write(self._device, struct.pack("<IiQ", 16 + len(body), -error, number) + body)

    def __enter__(self) -> "HangingFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unmounts the file system: a call that still waits gets an error."""
        self._libc.umount2(
            self._where, _MNT_FORCE | _MNT_DETACH
        )  # FORCE ends the connection, even if a process waits
        os.close(self._device)
        self._server.join(10)
