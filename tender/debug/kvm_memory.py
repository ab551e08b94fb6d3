"""The memory of a guest on KVM as the kernel shows that of its process: rights, and which pages are in use.

Guest memory is one range of the process's addresses. Its text and data are private mappings of a file, or anonymous.
"""

import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

from tender.debug.find import Guest
from tender.debug.target import DebugError, Mapping
from tender.errors import TenderError
from tender.image import Image
from tender.native import lib

_PAGE = 4096
_GATE, _GATE_END = lib.TENDER_GATE_GPA, lib.HVT_GUEST_MIN_GPA
_PAGEMAP_PAGES = 1 << 16  # pages that are looked at in one read
_IN_USE = re.compile(rb"[\x40-\xff]+")
"""Top bytes of entries of pagemap: bit 63 says that the page is there, bit 62 that it is swapped out.

Source: Documentation/admin-guide/mm/pagemap.rst of Linux 6.12."""


@dataclass(frozen=True)
class _Line:
    """A line of /proc/PID/maps."""

    start: int
    end: int
    rights: str
    inode: tuple[int, int]  # device and inode; (0, 0): anonymous


def _lines(pid: int) -> Iterator[_Line]:
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
            for line in file:
                words = line.split(maxsplit=5)
                start, end = (int(word, 16) for word in words[0].split("-"))
                major, minor = (int(word, 16) for word in words[3].split(":"))
                yield _Line(start, end, words[1], (os.makedev(major, minor), int(words[4])))
    except OSError as error:
        raise DebugError(f"process {pid}: its memory map cannot be read", errno=error.errno or 0) from None


def _memory_lines(guest: Guest) -> Iterator[_Line]:
    """Yields the lines that guest memory lies in, cut to it and with guest-physical addresses."""
    first, last = guest.memory_hva, guest.memory_hva + guest.mem_bytes
    for line in _lines(guest.pid):
        start, end = max(line.start, first), min(line.end, last)
        if start < end:
            yield _Line(start - first, end - first, line.rights, line.inode)


def out_of_gate(rip: int, rsp: int, read: Callable[[int, int], bytes]) -> tuple[int, int]:
    """Returns RIP and RSP as after the return from the gate page, which has no symbols and no unwind tables.

    Args:
        rip: RIP. Outside of the page nothing is changed.
        rsp: RSP.
        read: Reads guest memory.
    """
    if not _GATE <= rip < _GATE_END:
        return rip, rsp
    return int.from_bytes(read(rsp, 8), "little"), rsp + 8 & (1 << 64) - 1


def is_library(guest: Guest) -> bool:
    """Whether the guest's program is a library of its process, and not the process's own program."""
    with suppress(OSError, DebugError):
        about = os.stat(f"/proc/{guest.pid}/exe")
        program = (about.st_dev, about.st_ino)
        return all(line.inode != program for line in _lines(guest.pid) if line.start == guest.base)
    return False


def mappings_of(guest: Guest) -> list[Mapping]:
    """Returns guest memory in ascending order. To read and to write, as the host's mapping allows; to execute, as the
    image says: KVM's guests have no page that is not executable to them."""
    text = _text_of(guest.image)
    found: list[Mapping] = []
    for line in _memory_lines(guest):
        flags = (lib.SEGMENT_READ if "r" in line.rights else 0) | (
            lib.SEGMENT_WRITE if "w" in line.rights else 0
        )
        cuts = {line.start, line.end, *(at for piece in text for at in piece if line.start < at < line.end)}
        edges = sorted(cuts)
        for start, end in pairwise(edges):
            executes = any(first <= start < last for first, last in text)
            rights = flags | (lib.SEGMENT_EXEC if executes else 0)
            if found and found[-1].end == start and found[-1].flags == rights:
                found[-1] = Mapping(found[-1].start, end, rights)
            else:
                found.append(Mapping(start, end, rights))
    return found


def _text_of(image: str) -> list[tuple[int, int]]:
    """Returns the executable segments of the image, if it can be read."""
    if image:
        with suppress(TenderError), Image.open(image) as opened:
            return [(it.start, it.end) for it in opened.segments if it.flags & lib.SEGMENT_EXEC]
    return []


def touched_of(guest: Guest) -> list[tuple[int, int]]:
    """Returns the runs of pages that may hold other bytes than zeros, in ascending order.

    A page of a file may hold them without being in memory.
    """
    runs: list[tuple[int, int]] = []
    with suppress(OSError), open(f"/proc/{guest.pid}/pagemap", "rb", buffering=0) as pagemap:
        for line in _memory_lines(guest):
            whole = [(line.start, line.end)] if line.inode[1] else None
            for start, end in whole or _in_use(pagemap.fileno(), guest.memory_hva, line.start, line.end):
                if runs and runs[-1][1] == start:
                    runs[-1] = (runs[-1][0], end)
                else:
                    runs.append((start, end))
        return runs
    return [(line.start, line.end) for line in _memory_lines(guest)]


def _in_use(pagemap: int, hva: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    entry = struct.calcsize("<Q")
    for first in range(start, end, _PAGEMAP_PAGES * _PAGE):
        pages = min(_PAGEMAP_PAGES, (end - first) // _PAGE)
        entries = os.pread(pagemap, pages * entry, (hva + first) // _PAGE * entry)
        for run in _IN_USE.finditer(entries[entry - 1 :: entry]):
            yield first + run.start() * _PAGE, first + run.end() * _PAGE
