"""The parts of an ELF file that a debugger reads: sections, segments, symbols and text, of a file that may be hostile.

Nothing is read before it is needed, and nothing is larger than the file or the limits below. Every number of the file is
checked where it is used. A section that is broken is an empty one.

It reads with `struct` and not with pyelftools, because a report has to be quick (a table of 60000 symbols) and bounded: a
line table of 100 bytes can keep pyelftools busy for ever.
"""

import os
import stat
import struct
import zlib
from dataclasses import dataclass
from typing import Self

from tender.errors import ImageError
from tender.printable import printable

SECTION_MAX = 256 << 20
"""The most bytes of a section, after it was unpacked."""
_FILE_MAX = 4 << 30
_SECTIONS_MAX = 4096
_SEGMENTS_MAX = 256

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_COMPRESSION = struct.Struct("<IIQQ")
_NOBITS, _COMPRESSED, _ZLIB = 8, 0x800, 1
_PT_LOAD, _PF_X = 1, 1


@dataclass(frozen=True)
class Section:
    """A section: its name, type, flags, address and place in the file."""

    name: str
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int


@dataclass(frozen=True)
class Segment:
    """A part of the file that is loaded, with its rights as in p_flags: 1 execute, 2 write, 4 read."""

    flags: int
    offset: int
    address: int
    file_bytes: int
    mem_bytes: int

    def holds(self, address: int) -> bool:
        return self.address <= address < self.address + self.mem_bytes


class ElfFile:
    """An ELF file of x86-64. It owns the descriptor."""

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self.path = path
        self._size = min(os.fstat(fd).st_size, _FILE_MAX)
        head = self._at(0, _HEADER.size)
        if len(head) < _HEADER.size or head[:4] != b"\x7fELF":
            raise ImageError("no ELF file", file=path)
        ident, _, machine, _, entry, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, names = (
            _HEADER.unpack(head)
        )
        if ident[4:6] != b"\x02\x01" or machine != 62:
            raise ImageError("no ELF file of x86-64", file=path)
        self.entry: int = entry
        self.segments = self._read_segments(phoff, phentsize, phnum)
        self._list = self._read_sections(shoff, shentsize, shnum, names)
        self.sections: dict[str, Section] = {}
        for section in self._list:
            self.sections.setdefault(section.name, section)
        self._text: dict[Segment, bytes] = {}

    @classmethod
    def open(cls, path: str) -> Self:
        """Opens a regular file. Raises ImageError if it is none, or no ELF file of x86-64."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            why = os.strerror(error.errno or 0) if isinstance(error, OSError) else "no name of a file"
            raise ImageError(why, file=path) from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ImageError("no regular file", file=path)
        return cls(fd, path)  # the object owns the descriptor, also if it raises

    def fileno(self) -> int:
        """Returns the descriptor."""
        return self._fd

    def close(self) -> None:
        """Closes the file. It may be called again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()

    def data(self, name: str) -> bytes:
        """Returns the bytes of a section, unpacked; none if there is no such section or it is broken."""
        section = self.sections.get(name)
        return self._data(section) if section else b""

    def linked(self, section: Section) -> bytes:
        """Returns the bytes of the section that another one names: the names of a table of symbols."""
        return self._data(self._list[section.link]) if section.link < len(self._list) else b""

    def is_text(self, address: int) -> bool:
        """Returns whether the address lies in executable bytes of the file."""
        return any(it.flags & _PF_X and it.holds(address) for it in self.segments)

    def segment_at(self, address: int) -> Segment | None:
        """Returns the loaded part that holds the address."""
        return next((it for it in self.segments if it.holds(address)), None)

    def text(self, address: int, length: int) -> bytes:
        """Returns bytes at an address as the file has them: fewer if they end."""
        for it in self.segments:
            if it.address <= address < it.address + it.file_bytes:
                skip = address - it.address
                if it not in self._text and it.flags & _PF_X and it.file_bytes <= SECTION_MAX:
                    self._text[it] = self._at(it.offset, it.file_bytes)
                if it in self._text:
                    return self._text[it][skip : skip + length]
                return self._at(it.offset + skip, min(length, it.file_bytes - skip))
        return b""

    def _at(self, offset: int, length: int) -> bytes:
        length = min(length, self._size - offset)
        if offset < 0 or length <= 0:
            return b""
        try:
            return os.pread(self._fd, length, offset)
        except OSError:
            return b""

    def _data(self, section: Section) -> bytes:
        if section.kind == _NOBITS or section.size > SECTION_MAX:
            return b""
        data = self._at(section.offset, section.size)
        if not section.flags & _COMPRESSED or len(data) < _COMPRESSION.size:
            return data
        kind, _, size, _ = _COMPRESSION.unpack_from(data)
        if kind != _ZLIB or size > SECTION_MAX:
            return b""
        try:
            return zlib.decompressobj().decompress(data[_COMPRESSION.size :], size) if size else b""
        except zlib.error:
            return b""

    def _read_segments(self, offset: int, step: int, count: int) -> list[Segment]:
        if step < _SEGMENT.size:
            return []
        found = []
        for index in range(min(count, _SEGMENTS_MAX)):
            row = self._at(offset + index * step, _SEGMENT.size)
            if len(row) < _SEGMENT.size:
                break
            kind, flags, place, address, _, file_bytes, mem_bytes, _ = _SEGMENT.unpack(row)
            if kind == _PT_LOAD:
                file_bytes = min(file_bytes, mem_bytes, max(0, self._size - place))
                found.append(Segment(flags & 7, place, address, file_bytes, mem_bytes))
        return found

    def _read_sections(self, offset: int, step: int, count: int, names_at: int) -> list[Section]:
        if step != _SECTION.size or not offset:
            return []
        table = self._at(offset, min(count, _SECTIONS_MAX) * step)
        table = table[: len(table) // step * step]
        rows = list(_SECTION.iter_unpack(table))
        if names_at >= len(rows):
            return []
        names = self._at(rows[names_at][4], min(rows[names_at][5], 1 << 20))
        return [
            Section(c_text(names, row[0]), row[1], row[2], row[3], row[4], row[5], row[6]) for row in rows
        ]


def c_text(data: bytes, offset: int, limit: int = 4096) -> str:
    """Returns the text up to a zero byte, at most `limit` bytes of it, with nothing that a terminal would obey."""
    if not 0 <= offset < len(data):
        return ""
    end = data.find(b"\0", offset, offset + limit)
    raw = data[offset : end if end >= 0 else offset + limit]
    return printable(raw.decode("utf-8", "replace"))
