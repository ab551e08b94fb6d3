"""The frames between the host and init.c, over one virtio-serial port; the picture is in init.c.

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
    STDIN = b"I"  # to the test VM: data; from the test VM: the data was taken
    STDOUT = b"O"
    STDERR = b"E"
    EXIT = b"X"


def encode(kind: Kind, payload: bytes = b"") -> bytes:
    """One frame; raises KvmboxError if it passes what init.c takes."""
    if len(payload) > FRAME_MAX:
        raise KvmboxError(f"command and environment are {len(payload)} bytes; the most is {FRAME_MAX}")
    return HEADER.pack(kind.value, len(payload)) + payload


def fields(values: Iterable[bytes]) -> bytes:
    """Values, each ended with NUL; raises KvmboxError if one holds a NUL."""
    payload = bytearray()
    for value in values:
        if b"\0" in value:
            raise KvmboxError(f"a NUL byte in {value!r}")
        payload += value + b"\0"
    return bytes(payload)


class Decoder:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream, however they are cut."""
        self._pending += data

    def take(self) -> tuple[Kind, bytes] | None:
        """The next whole frame, or None; raises KvmboxError if the stream is no such thing."""
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
    """A socket, or what looks like one."""

    def fileno(self) -> int: ...
    def sendall(self, data: bytes, /) -> None: ...
    def recv(self, size: int, /) -> bytes: ...


class Channel:
    """The host's end. Sending never blocks for long: see the rule on stdin in init.c."""

    def __init__(self, end: End) -> None:
        self._socket = end
        self._decoder = Decoder()

    def fileno(self) -> int:
        """For select()."""
        return self._socket.fileno()

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Send one frame; raises KvmboxError if the test VM is gone."""
        try:
            self._socket.sendall(encode(kind, payload))
        except OSError as error:
            raise KvmboxError("the test VM went away") from error

    def take(self) -> tuple[Kind, bytes] | None:
        """A frame that has come whole, or None."""
        return self._decoder.take()

    def read(self) -> None:
        """Take in what has come; raises KvmboxError if the test VM is gone."""
        data = self._socket.recv(1 << 18)
        if not data:
            raise KvmboxError("the test VM went away")
        self._decoder.feed(data)

    def expect_ready(self, limit_s: float, failed: Callable[[], str] = lambda: "") -> None:
        """Wait until the test VM says it is ready; raises KvmboxError if it does not, or has no /dev/kvm.

        failed: asked now and then; why the test VM never will be, or nothing
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
