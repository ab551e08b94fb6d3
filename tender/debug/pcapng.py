"""Writes packet captures: pcapng, https://www.ietf.org/archive/id/draft-ietf-opsawg-pcapng-03.html.

    section header, one interface block for each network, packets as they come, statistics at the end

All numbers are little-endian; a block and an option are filled up to four bytes.
"""

import struct
from enum import IntEnum
from typing import BinaryIO

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_MAGIC = 0x1A2B3C4D
_LINK_ETHERNET = 1
_SECTION_LENGTH_UNKNOWN = (1 << 64) - 1
_END, _APPLICATION = 0, 4
_IF_NAME, _IF_DESCRIPTION, _IF_MAC, _IF_RESOLUTION = 2, 3, 6, 9
_FLAGS = 2
_IF_RECEIVED, _IF_DROPPED = 4, 5
_NANOSECONDS = 9


class Direction(IntEnum):
    """Which way a frame went, as the guest sees it."""

    IN = 1
    OUT = 2


class Writer:
    """Writes a capture into a file that is open for bytes. All of it may raise OSError."""

    def __init__(self, file: BinaryIO, application: str, snaplen: int) -> None:
        self._file, self._snaplen, self._interfaces = file, snaplen, 0
        body = struct.pack("<IHHQ", _MAGIC, 1, 0, _SECTION_LENGTH_UNKNOWN)
        self._block(_SECTION, body + _options((_APPLICATION, application.encode())))

    def interface(self, name: str, description: str, mac: bytes) -> int:
        """Declares a network, and returns its number in the file."""
        options = [
            (_IF_NAME, name.encode("utf-8", "replace")),
            (_IF_DESCRIPTION, description.encode("utf-8", "replace")),
            (_IF_RESOLUTION, bytes([_NANOSECONDS])),
        ]
        if len(mac) == 6:
            options.append((_IF_MAC, mac))
        self._block(_INTERFACE, struct.pack("<HHI", _LINK_ETHERNET, 0, self._snaplen) + _options(*options))
        self._interfaces += 1
        return self._interfaces - 1

    def packet(self, interface: int, time_ns: int, frame: bytes, length: int, direction: Direction) -> None:
        """Writes a frame, of which `frame` is the beginning and `length` the whole length."""
        head = struct.pack(
            "<IIIII", interface, time_ns >> 32 & 0xFFFFFFFF, time_ns & 0xFFFFFFFF, len(frame), length
        )
        self._block(_PACKET, head + _filled(frame) + _options((_FLAGS, struct.pack("<I", direction))))

    def statistics(self, interface: int, time_ns: int, received: int, dropped: int) -> None:
        """Writes how many frames there were, and how many of them are missing here."""
        body = struct.pack("<III", interface, time_ns >> 32 & 0xFFFFFFFF, time_ns & 0xFFFFFFFF)
        counts = (_IF_RECEIVED, struct.pack("<Q", received)), (_IF_DROPPED, struct.pack("<Q", dropped))
        self._block(_STATISTICS, body + _options(*counts))

    def flush(self) -> None:
        """Gives what was written to the reader of the file."""
        self._file.flush()

    def _block(self, kind: int, body: bytes) -> None:
        size = 12 + len(body)
        self._file.write(struct.pack("<II", kind, size) + body + struct.pack("<I", size))


def _options(*options: tuple[int, bytes]) -> bytes:
    return b"".join(
        struct.pack("<HH", code, len(value)) + _filled(value) for code, value in (*options, (_END, b""))
    )


def _filled(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
