"""A disk whose reads and writes fail, or transfer less than requested, where a test says so. The kernel sees a real
file.

    with FaultyDisk(64 << 10) as disk:
        disk.read[8192] = errno.EIO         a read that covers byte 8192 fails
        disk.short = 1000                   no transfer moves more bytes than this
        ... BlockFd(disk.open()) ...

The disk is the root of a FUSE file system that is not mounted at any path (fsopen(2), fsmount(2)). A thread of this process
answers the requests. So the errors come from the system calls, and with `mapped` from page faults, like those of a broken
medium. The file system ends with its last descriptor: a test that dies leaves nothing behind. Needs root and Linux 5.2.
"""

import contextlib
import ctypes
import errno
import os
import stat
import struct
import threading
from types import TracebackType

LIBC = ctypes.CDLL(None, use_errno=True)
FSOPEN, FSCONFIG, FSMOUNT = 430, 431, 432  # asm/unistd.h, all architectures
SET_STRING, CREATE = 1, 6  # enum fsconfig_command, linux/mount.h
GETATTR, SETATTR, OPEN, READ, WRITE, STATFS = 3, 4, 14, 15, 16, 17  # enum fuse_opcode, linux/fuse.h
RELEASE, FSYNC, FLUSH, INIT = 18, 20, 25, 26
UNANSWERED = (2, 36, 38, 42)  # FORGET, INTERRUPT, DESTROY, BATCH_FORGET
FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE = 1, 2
REQUEST_MAX = 128 << 10
PAGE = 4096


def system_call(number: int, *args: int | bytes | None) -> int:
    """Makes a system call by its number; raises OSError."""
    done: int = LIBC.syscall(number, *args)
    if done < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}: {os.strerror(ctypes.get_errno())}")
    return done


class FaultyDisk:
    """`data` is what the medium contains. A fault is an errno at an offset: a transfer that covers that byte fails.

    Without `mapped` each call reaches the medium as the caller made it. With `mapped` the kernel's cache is between
    them, as for any file, and the disk can be mapped into memory.
    """

    def __init__(self, size: int, *, mapped: bool = False) -> None:
        self.data = bytearray(os.urandom(size))
        self.read: dict[int, int] = {}
        self.write: dict[int, int] = {}
        self.sync = 0
        self.short = REQUEST_MAX
        """The largest number of bytes that one transfer moves."""
        self.after_short = 0
        """An errno, or 0: the transfer that continues where a short one ended fails with it."""
        self._cut_at = -1
        self.reads: list[tuple[int, int]] = []
        """Offset and length of each read that reached the medium; `writes` has those of the writes."""
        self.writes: list[tuple[int, int]] = []
        self._flags = FOPEN_KEEP_CACHE if mapped else FOPEN_DIRECT_IO
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        context = system_call(FSOPEN, b"fuse", 1)
        try:
            options = {
                "fd": str(self._device),
                "rootmode": f"{stat.S_IFREG:o}",
                "user_id": "0",
                "group_id": "0",
            }
            for name, value in options.items():
                system_call(FSCONFIG, context, SET_STRING, name.encode(), value.encode(), 0)
            system_call(FSCONFIG, context, CREATE, None, None, 0)
            self._mount = system_call(FSMOUNT, context, 1, 0)
        finally:
            os.close(context)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._opened: list[int] = []

    def open(self, flags: int = os.O_RDWR) -> int:
        """Returns a descriptor of the disk, which is closed with the disk."""
        fd = os.open(f"/proc/self/fd/{self._mount}", flags)
        self._opened.append(fd)
        return fd

    def __enter__(self) -> "FaultyDisk":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        for fd in self._opened:
            os.close(fd)
        os.close(self._mount)
        self._thread.join(120)
        os.close(self._device)

    # ---- the server of the file system

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._device, REQUEST_MAX + PAGE)
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    return
                continue
            _, opcode, unique = struct.unpack_from("<IIQ", request)
            if opcode in UNANSWERED:
                continue
            try:
                code, body = 0, self._answer(opcode, request[40:])
            except OSError as error:
                code, body = error.errno or errno.EIO, b""
            with contextlib.suppress(OSError):  # the process that asked has ended
                os.write(self._device, struct.pack("<IiQ", 16 + len(body), -code, unique) + body)

    def _answer(self, opcode: int, body: bytes) -> bytes:
        if opcode == INIT:
            return struct.pack("<IIIIHHIIHHII24x", 7, 31, REQUEST_MAX, 0, 16, 12, REQUEST_MAX, 1, 0, 0, 0, 0)
        if opcode in (GETATTR, SETATTR):
            size = len(self.data)
            attributes = (
                1,
                size,
                -(-size // 512),
                0,
                0,
                0,
                0,
                0,
                0,
                stat.S_IFREG | 0o600,
                1,
                0,
                0,
                0,
                PAGE,
                0,
            )
            return struct.pack("<QII6Q10I", 3600, 0, 0, *attributes)
        if opcode == OPEN:
            return struct.pack("<QII", 1, self._flags, 0)
        if opcode == STATFS:
            return struct.pack("<5Q4I24x", 0, 0, 0, 0, 0, PAGE, 255, PAGE, 0)
        if opcode in (READ, WRITE):
            _, offset, length = struct.unpack_from("<QQI", body)
            return self._transfer(opcode == WRITE, offset, length, body[40:])
        if opcode == FSYNC and self.sync:
            raise OSError(self.sync, "")
        if opcode in (RELEASE, FLUSH, FSYNC):
            return b""
        raise OSError(errno.ENOSYS, "")

    def _transfer(self, writing: bool, offset: int, length: int, payload: bytes) -> bytes:
        (self.writes if writing else self.reads).append((offset, length))
        for at, code in (self.write if writing else self.read).items():
            if offset <= at < offset + length:
                raise OSError(code, "")
        if self.after_short and offset == self._cut_at:
            self._cut_at = -1
            raise OSError(self.after_short, "")
        if length > self.short:
            length = self.short
            self._cut_at = offset + length
        if not writing:
            return bytes(self.data[offset : offset + length])
        self.data[offset : offset + length] = payload[:length]
        return struct.pack("<II", length, 0)
