"""Reads the debug note of a process: numbers and addresses by name. bindings/core/debug_note.h has the format.

It is read from the memory of the process, whose loader has put it there. So a file that was replaced meanwhile, or that
lies in another mount namespace, makes no difference. The process may be hostile: each length is bounded.
"""

import struct
from collections.abc import Callable
from functools import lru_cache

VERSION = 1
"""DEBUG_NOTE_VERSION of bindings/core/debug_note.h."""

_OWNER = b"TENDER\0\0"
_NUMBER, _ADDRESS = 1, 2  # DEBUG_NOTE_NUMBER, DEBUG_NOTE_ADDRESS

# The ELF specification: Elf64_Ehdr, Elf64_Phdr, Elf64_Nhdr.
_EHDR = struct.Struct("<4sBB10xHHIQQQIHHH6x")
_PHDR = struct.Struct("<IIQQQQQQ")
_NHDR = struct.Struct("<III")
_CLASS_64, _LITTLE, _X86_64, _LOAD, _NOTE = 2, 1, 62, 1, 4
_PHDRS_MAX = 64
_NOTE_BYTES_MAX = 1 << 16
_PAGE_MASK = -4096

Read = Callable[[int, int], bytes]
"""read(address, length): the bytes there, fewer if they end."""


def read_note(read: Read, start: int) -> tuple[dict[str, int], int]:
    """Returns the debug note of the program or library whose file begins at `start` in memory, and its load address.

    Addresses are relative to the load address. The note is empty if the file has none.
    """
    header = read(start, _EHDR.size)
    if len(header) < _EHDR.size:
        return {}, start
    magic, kind, order, _, machine, _, _, phoff, _, _, _, size, count = _EHDR.unpack(header)
    if (magic, kind, order, machine, size) != (b"\x7fELF", _CLASS_64, _LITTLE, _X86_64, _PHDR.size):
        return {}, start
    count = min(count, _PHDRS_MAX)
    table = read(start + phoff, count * _PHDR.size)
    headers = list(_PHDR.iter_unpack(table[: len(table) // _PHDR.size * _PHDR.size]))
    base = start
    for type, _, offset, vaddr, _, _, _, _ in headers:
        if type == _LOAD and not offset:
            base = start - (vaddr & _PAGE_MASK)
    note: dict[str, int] = {}
    for type, _, _, vaddr, _, _, bytes, _ in headers:
        if type == _NOTE and 0 < bytes <= _NOTE_BYTES_MAX:
            note |= parse(read(base + vaddr, bytes), vaddr)
    return note, base


@lru_cache(maxsize=64)
def parse(data: bytes, vaddr: int) -> dict[str, int]:
    """Returns the facts in the bytes of a note segment that is linked at `vaddr`."""
    facts: dict[str, int] = {}
    at = 0
    while at + _NHDR.size <= len(data):
        owner_bytes, content_bytes, type = _NHDR.unpack_from(data, at)
        owner = data[at + _NHDR.size :][: _aligned(owner_bytes)]
        at += _NHDR.size + _aligned(owner_bytes)
        content = data[at : at + content_bytes]
        if owner == _OWNER and len(content) > 8:
            number = int.from_bytes(content[:8], "little", signed=True)
            name = content[8:].partition(b"\0")[0].decode("ascii", "replace")
            if type == _NUMBER:
                facts[name] = number
            elif type == _ADDRESS:
                facts[name] = vaddr + at + number
        at += _aligned(content_bytes)
    return facts


def _aligned(length: int) -> int:
    return length + 3 & -4
