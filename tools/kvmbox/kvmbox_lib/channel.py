"""The frames between the host and init.c, over one virtio-serial port. init.c lists them.

u8 kind | u32 length, little endian | payload
"""

import select
import struct
import time
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Protocol

from .errors import KvmboxError

HEADER = struct.Struct("<cI")
FRAME_MAX = 8 << 20  # as in init.c
STDIN_CHUNK = 32768
LOOK_S = 1.0


class Kind(Enum):
    """What a frame is about."""

    SETUP = b"S"
    JOB = b"J"
    KILL = b"K"
    READY = b"R"
    STDIN = b"I"  # to the test VM: data; from the test VM: the command has read the data
    STDOUT = b"O"
    STDERR = b"E"
    EXIT = b"X"


def encode(kind: Kind, payload: bytes = b"") -> bytes:
    """One frame. Raises KvmboxError if it is longer than init.c accepts."""
    if len(payload) > FRAME_MAX:
        raise KvmboxError(f"command and environment have {len(payload)} bytes; the maximum is {FRAME_MAX}")
    return HEADER.pack(kind.value, len(payload)) + payload


def fields(values: Iterable[bytes]) -> bytes:
    """The values, each followed by a NUL. Raises KvmboxError if a value contains a NUL."""
    payload = bytearray()
    for value in values:
        if b"\0" in value:
            raise KvmboxError(f"{value!r} contains a NUL byte")
        payload += value + b"\0"
    return bytes(payload)


class Decoder:
    """Splits a stream of bytes into frames."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> None:
        """Add the next bytes of the stream. They may end anywhere in a frame."""
        self._pending += data

    def take(self) -> tuple[Kind, bytes] | None:
        """The next complete frame, or None. Raises KvmboxError if the bytes are not a frame."""
        if len(self._pending) < HEADER.size:
            return None
        code, length = HEADER.unpack_from(self._pending)
        if length > FRAME_MAX or code not in {kind.value for kind in Kind}:
            raise KvmboxError(f"the test VM sent a broken frame: kind {code!r}, {length} bytes")
        end = HEADER.size + length
        if len(self._pending) < end:
            return None
        payload = bytes(self._pending[HEADER.size : end])
        del self._pending[:end]
        return Kind(code), payload


class End(Protocol):
    """A socket, or an object with the same methods."""

    def fileno(self) -> int: ...
    def sendall(self, data: bytes, /) -> None: ...
    def recv(self, size: int, /) -> bytes: ...


class Channel:
    """The host's end. Sending never blocks for long, because of the rule on stdin in init.c."""

    def __init__(self, end: End) -> None:
        self._socket = end
        self._decoder = Decoder()

    def fileno(self) -> int:
        """For select()."""
        return self._socket.fileno()

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Send one frame. Raises KvmboxError if the test VM is gone."""
        try:
            self._socket.sendall(encode(kind, payload))
        except OSError as error:
            raise KvmboxError("the test VM ended") from error

    def take(self) -> tuple[Kind, bytes] | None:
        """The next complete frame, or None."""
        return self._decoder.take()

    def read(self) -> None:
        """Read what has come. Raises KvmboxError if the test VM is gone."""
        data = self._socket.recv(1 << 18)
        if not data:
            raise KvmboxError("the test VM ended")
        self._decoder.feed(data)

    def expect_ready(self, limit_s: float, failed: Callable[[], str] = lambda: "") -> None:
        """Wait until the test VM reports that it is ready.

        `failed` is called now and then. It returns why the test VM will never be ready, or "". Raises KvmboxError if
        the test VM has failed, is not ready within the limit, or has no /dev/kvm.
        """
        deadline = time.monotonic() + limit_s
        while (frame := self.take()) is None:
            left_s = max(0.0, deadline - time.monotonic())
            if select.select([self], [], [], min(left_s, LOOK_S))[0]:
                self.read()
            elif why := failed():
                raise KvmboxError(why)
            elif not left_s:
                raise KvmboxError(f"the test VM was not ready within {limit_s:.0f} s")
        if frame != (Kind.READY, b"kvm"):
            raise KvmboxError(f"the test VM has no /dev/kvm: {frame[1].decode(errors='replace')}")
