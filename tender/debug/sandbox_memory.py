"""The guest's memory in a process of the sandbox: which of it is used, and the call sites that Tender has patched.

A hypercall's call site is `mov $port,%edx; out %eax,(%dx)` in the image, and a jump to a trampoline in memory. The
trampoline says which hypercall it was: bindings/machine/sandbox/patch.h. A debugger is shown the image's bytes.
"""

import os
import struct
from bisect import bisect_left
from collections.abc import Callable, Sequence
from errno import EACCES, EPERM

from tender.debug.access import refusal
from tender.debug.target import DebugError, Mapping

MEMORY_START = 0x10000
"""The lowest address that a guest may read: abi/tender_abi.h, HVT_BOOT_INFO_GPA."""
LOW_END = 0x100000
"""HVT_GUEST_MIN_GPA, the end of the trampolines and the gate page."""

_TRAMPOLINES, _GATE = 0x80000, 0xFF000  # bindings/machine/sandbox/layout.h
_TRAMPOLINE_BYTES, _BACK_AT, _CALL_AT = 32, 12, 16
_SITE_BYTES, _JUMP_BYTES = 6, 5
_MOV_EDX, _JUMP = 0xBA, 0xE9
_PORT_BASE, _HYPERCALLS_MAX = 0x500, 32
_GUEST_END = 1 << 32
_PAGE = 4096
_PIECE = 1 << 20
_PRESENT_OR_SWAPPED = 3 << 62  # Documentation/admin-guide/mm/pagemap.rst
_RIGHTS = (("x", 1), ("w", 2), ("r", 4))

Read = Callable[[int, int], bytes]


class PatchedSites:
    """The patched call sites of a guest. They are read when they are needed."""

    start = _TRAMPOLINES

    def __init__(self, read: Read) -> None:
        self._read = read
        self._sites: dict[int, bytes] | None = None
        self._order: list[int] = []

    def show(self, gpa: int, data: bytearray) -> None:
        """Puts the image's bytes into what was read at `gpa`."""
        for site, original in self._at(gpa, len(data)):
            first, last = max(site, gpa), min(site + _JUMP_BYTES, gpa + len(data))
            if first < last:
                data[first - gpa : last - gpa] = original[first - site : last - site]

    def inside(self, gpa: int) -> int | None:
        """Returns the call site that the address lies in, but not at the start of."""
        return next((site for site, _ in self._at(gpa, 1) if site < gpa), None)

    def replaced(self, gpa: int, data: bytes, shown: Read) -> bytes:
        """Returns what to write at `gpa` for `data`. A call site that stays as it is stays patched; another one is none
        any more. `shown` reads memory as the debugger is shown it."""
        result = bytearray(data)
        for site, original in list(self._at(gpa, len(data))):
            first, last = max(site, gpa), min(site + _JUMP_BYTES, gpa + len(data))
            if first >= last:
                continue
            if data[first - gpa : last - gpa] == original[first - site : last - site]:
                result[first - gpa : last - gpa] = self._read(first, last - first)
            elif first == site and last == site + _JUMP_BYTES:
                self._forget(site)
            else:
                raise DebugError(
                    f"memory at {gpa:#x} cannot be written: it is a part of the hypercall at {site:#x}"
                )
        return bytes(result)

    def _at(self, gpa: int, length: int) -> list[tuple[int, bytes]]:
        sites = self._known()
        found = []
        for site in self._order[bisect_left(self._order, gpa - _SITE_BYTES + 1) :]:
            if site >= gpa + length:
                break
            found.append((site, sites[site]))
        return found

    def _known(self) -> dict[int, bytes]:
        if self._sites is None:
            self._sites = self._find()
            self._order = sorted(self._sites)
        return self._sites

    def _forget(self, site: int) -> None:
        del self._known()[site]
        self._order.remove(site)

    def _find(self) -> dict[int, bytes]:
        sites: dict[int, bytes] = {}
        for page in range(_TRAMPOLINES, _GATE, _PAGE):
            data = self._read(page, _PAGE)
            for at in range(0, len(data) - _TRAMPOLINE_BYTES + 1, _TRAMPOLINE_BYTES):
                if data[at] != _MOV_EDX:
                    return sites
                (back,) = struct.unpack_from("<I", data, at + _BACK_AT)
                (call,) = struct.unpack_from("<I", data, at + _CALL_AT)
                site = back - _SITE_BYTES
                if site >= LOW_END and 0 < call < _HYPERCALLS_MAX:
                    jump = self._read(site, _JUMP_BYTES)
                    distance = (page + at - site - _JUMP_BYTES) & 0xFFFFFFFF
                    if jump[1:] == struct.pack("<I", distance):  # the first byte may be a breakpoint
                        sites[site] = bytes([_MOV_EDX]) + struct.pack("<I", _PORT_BASE + call)
        return sites


def _lines(pid: int, mem_bytes: int) -> list[tuple[int, int, str, bool]]:
    """Returns the mappings of guest memory: start, end, rights, and whether it is only anonymous memory."""
    try:
        with open(f"/proc/{pid}/maps", errors="replace") as file:
            text = file.read()
    except PermissionError:
        why, hint = refusal(pid)
        raise DebugError(f"process {pid}: {why}", errno=EPERM, code="debug-denied", hint=hint) from None
    except OSError as error:
        raise DebugError(f"process {pid}: its mappings: {error.strerror}", errno=error.errno or 0) from None
    found = []
    for line in text.splitlines():
        place, rights, _, _, inode = line.split(maxsplit=5)[:5]
        start, end = (int(it, 16) for it in place.split("-"))
        end = min(end, mem_bytes)
        if start < end and start < _GUEST_END:
            found.append((start, end, rights, inode == "0"))
    return found


def mappings_of(pid: int, mem_bytes: int) -> Sequence[Mapping]:
    """Returns the guest's memory with its rights. Neighbours with the same rights are one."""
    found: list[Mapping] = []
    for start, end, rights, _ in _lines(pid, mem_bytes):
        flags = sum(bit for letter, bit in _RIGHTS if letter in rights)
        if found and found[-1].end == start and found[-1].flags == flags:
            start = found.pop().start
        found.append(Mapping(start, end, flags))
    return found


def touched_of(pid: int, mem_bytes: int, read: Read) -> Sequence[tuple[int, int]]:
    """Returns the runs of pages that may hold other bytes than zeros.

    Pages of the image's file count as touched: most are, and the kernel does not tell of those that are not mapped yet.
    """
    runs: list[tuple[int, int]] = []

    def add(start: int, end: int) -> None:
        if runs and runs[-1][1] == start:
            start = runs.pop()[0]
        runs.append((start, end))

    try:
        pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (EPERM, EACCES):
            raise DebugError(f"process {pid}: its pages: {error.strerror}", errno=error.errno or 0) from None
        pagemap = -1
    try:
        for start, end, _, is_anonymous in _lines(pid, mem_bytes):
            if not is_anonymous:
                add(start, end)
                continue
            for piece in range(start, end, _PIECE):
                last = min(piece + _PIECE, end)
                for page in _pages(pagemap, piece, last) if pagemap >= 0 else _not_zero(read, piece, last):
                    add(page, page + _PAGE)
    finally:
        if pagemap >= 0:
            os.close(pagemap)
    return runs


def _pages(pagemap: int, start: int, end: int) -> list[int]:
    data = os.pread(pagemap, (end - start) // _PAGE * 8, start // _PAGE * 8)
    if data == bytes(len(data)):
        return []
    words = struct.unpack(f"<{len(data) // 8}Q", data[: len(data) // 8 * 8])
    return [start + i * _PAGE for i, word in enumerate(words) if word & _PRESENT_OR_SWAPPED]


def _not_zero(read: Read, start: int, end: int) -> list[int]:
    data = read(start, end - start)
    if not data.strip(b"\0"):
        return []
    return [start + at for at in range(0, len(data), _PAGE) if data[at : at + _PAGE].strip(b"\0")]
