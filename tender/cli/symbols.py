"""Symbols and build id of an ELF file, for people: reading has a bound on time and memory, whatever the file says.

The file is hostile, and the code that reads it is not confined: it runs after a guest's end, and in `tender inspect`. So
no number in the file decides how long a loop is or how much memory is used. The bounds are far above what a unikernel
has. A file that exceeds one is described as far as it was read.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tender.native import lib, open_file
from tender.printable import printable

SECTIONS_MAX = 1024
SYMBOLS_MAX = 1 << 18
NAME_MAX = 512
NAMES_BYTES_MAX = 16 << 20
BUILD_ID_MAX = 64
_SHOWN_MAX = 120

_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_NOTE = struct.Struct("<III")
_SYMTAB, _STRTAB, NOTES, _DYNSYM = 2, 3, 7, 11
_NOTYPE, _OBJECT, _FUNC = 0, 1, 2
_CHUNK = 1 << 20
_GNU_BUILD_ID = 3


@dataclass(frozen=True, kw_only=True)
class Symbol:
    """A symbol of the symbol table: a function unless `function` is False."""

    name: str
    address: int
    size: int
    function: bool = True


@dataclass(frozen=True, kw_only=True)
class Details:
    """What a file says about itself apart from what runs. `complete` is False if a bound ended the reading."""

    build_id: str = ""
    symbol_count: int = 0
    functions: tuple[Symbol, ...] = ()
    complete: bool = True


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section header. `name_at` is the place of its name in the file; a section without a name has 0."""

    name_at: int
    kind: int
    offset: int
    size: int
    link: int
    entry_bytes: int


class File:
    """A regular file that is read by position. Past its end there is nothing."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, offset: int, size: int) -> bytes:
        """Returns at most `size` bytes from `offset` on; none if there are none, or the host cannot read them."""
        if offset < 0 or offset >= 1 << 63 or size <= 0:
            return b""
        try:
            return os.pread(self._fd, size, offset)
        except OSError:
            return b""


def read_details(path: str) -> Details:
    """Returns build id, number of symbols and functions; empty if the section headers are missing or broken."""
    fd = _open(path)
    if fd < 0:
        return Details()
    try:
        return _details(File(fd))
    finally:
        os.close(fd)


def symbol_at(path: str, address: int) -> str:
    """Returns `name+0x12` for the symbol that `address` lies in; empty if the file has none there."""
    fd = _open(path)
    if fd < 0:
        return ""
    try:
        file, best = File(fd), (-1, "")
        sections = sections_of(file)
        for table, (name, kind, start, size), _ in _symbols(file, sections):
            if kind not in (_NOTYPE, _OBJECT, _FUNC) or not start <= address < start + max(size, 1):
                continue  # sections and files have addresses too, but are no code or data
            if start > best[0] and (text := _name(file, sections, table, name)):
                best = (start, text)
    finally:
        os.close(fd)
    return f"{printable(best[1][:_SHOWN_MAX])}+{address - best[0]:#x}" if best[1] else ""


def _open(path: str) -> int:
    """Returns a descriptor of a file that can be an image, else -1."""
    return open_file(path, lib.FILE_IMAGE)[0]


def _details(file: File) -> Details:
    sections = sections_of(file)
    build_id = next(filter(None, (build_id_of(file, s) for s in sections if s.kind == NOTES)), "")
    functions, count, named, complete = [], 0, 0, True
    for table, (name, kind, start, size), all_read in _symbols(file, sections):
        count += 1
        complete = complete and all_read
        if kind != _FUNC:
            continue
        if named >= NAMES_BYTES_MAX:
            complete = False
            continue
        text = _name(file, sections, table, name)
        named += len(text) + 1
        functions.append(Symbol(name=text, address=start, size=size))
    return Details(build_id=build_id, symbol_count=count, functions=tuple(functions), complete=complete)


def sections_of(file: File) -> list[Section]:
    """Returns the sections, as far as there are whole headers; none if the file is broken."""
    header = file.read(0, 64)
    if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
        return []
    (offset,) = struct.unpack_from("<Q", header, 40)
    header_bytes, count, names = struct.unpack_from("<HHH", header, 58)
    if header_bytes != _SECTION.size:
        return []
    table = file.read(offset, min(count, SECTIONS_MAX) * _SECTION.size)
    whole = len(table) - len(table) % _SECTION.size
    rows = list(_SECTION.iter_unpack(table[:whole]))
    names_at = rows[names][4] if names < len(rows) else 0
    return [
        Section(
            name_at=names_at and names_at + name,
            kind=kind,
            offset=at,
            size=size,
            link=link,
            entry_bytes=entry_bytes,
        )
        for name, kind, _, _, at, size, link, _, _, entry_bytes in rows
    ]


def section_name(file: File, section: Section) -> str:
    """Returns a section's name; empty if it has none."""
    raw = file.read(section.name_at, NAME_MAX) if section.name_at else b""
    return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def named_symbols(file: File, sections: list[Section]) -> Iterator[Symbol]:
    """Yields functions, objects and labels with their names, as far as the bounds allow."""
    named = 0
    for table, (name, kind, start, size), _ in _symbols(file, sections):
        if kind not in (_NOTYPE, _OBJECT, _FUNC):
            continue
        text = _name(file, sections, table, name)
        named += len(text) + 1
        if named > NAMES_BYTES_MAX:
            return
        if text:
            yield Symbol(name=text, address=start, size=size, function=kind == _FUNC)


def _symbols(
    file: File, sections: list[Section]
) -> Iterator[tuple[Section, tuple[int, int, int, int], bool]]:
    """Yields each symbol: its table, (place of its name, type, address, size), and whether the whole table is read."""
    left = SYMBOLS_MAX
    for table in sections:
        if table.kind not in (_SYMTAB, _DYNSYM) or table.entry_bytes != _SYMBOL.size:
            continue
        count = min(table.size // _SYMBOL.size, left)
        whole = count == table.size // _SYMBOL.size
        at, end = table.offset, table.offset + count * _SYMBOL.size
        while at < end:
            piece = file.read(at, min(end - at, _CHUNK // _SYMBOL.size * _SYMBOL.size))
            piece = piece[: len(piece) - len(piece) % _SYMBOL.size]
            if not piece:
                break
            at += len(piece)
            left -= len(piece) // _SYMBOL.size
            for name, info, _, _, start, size in _SYMBOL.iter_unpack(piece):
                yield table, (name, info & 0xF, start, size), whole


def _name(file: File, sections: list[Section], table: Section, place: int) -> str:
    if table.link >= len(sections):
        return ""
    strings = sections[table.link]
    if strings.kind != _STRTAB or place >= strings.size:
        return ""
    raw = file.read(strings.offset + place, min(NAME_MAX, strings.size - place))
    return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def build_id_of(file: File, section: Section) -> str:
    """Returns the build id if the section's first note is one."""
    raw = file.read(section.offset, min(section.size, _NOTE.size + 4 + BUILD_ID_MAX))
    if len(raw) < _NOTE.size + 4:
        return ""
    owner_bytes, size, kind = _NOTE.unpack_from(raw)
    at = _NOTE.size + 4
    if (owner_bytes, kind) != (4, _GNU_BUILD_ID) or raw[_NOTE.size : at] != b"GNU\0":
        return ""
    return raw[at : at + size].hex() if size <= BUILD_ID_MAX else ""
