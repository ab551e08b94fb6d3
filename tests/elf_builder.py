"""Builds unikernel ELFs, good and bad, for tests, without a compiler or a linker. Every byte of the file is predictable.

A file consists of the header, the program headers, the segments' bytes and the notes' bytes. Nothing is checked here:
every field can be given a wrong value, because bindings/guest_abi/elf_image.c is what must refuse it.

    data = good_elf(code=b"\\xf4", devices=[("service0", "net"), ("storage", "block")])
    data = build_elf(segments=[Segment(flags=PF_W | PF_X)], notes=[abi_note(), manifest_note([])])
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

PT_NULL, PT_LOAD, PT_INTERP, PT_NOTE, PT_TLS = 0, 1, 3, 4, 7
PF_X, PF_W, PF_R = 1, 2, 4
ET_EXEC, ET_DYN = 2, 3
EM_X86_64, EM_AARCH64 = 62, 183
HOST_MACHINE = EM_AARCH64 if platform.machine() == "aarch64" else EM_X86_64

LOAD_ADDRESS = 0x100000
PAGE = 0x1000
NOTE_ABI = 0x31494241
NOTE_MANIFEST = 0x3154464D
NOTE_EXTENSION = 0x31444E54
NOTE_HEADER_BYTES = 20
FEATURE_GATE = 1
TARGET_HVT, TARGET_SPT, TARGET_VIRTIO, TARGET_MUEN, TARGET_GENODE, TARGET_XEN = range(1, 7)
MFT_RESERVED_FIRST = 0x40000000
DEVICE_TYPES = {"block": 1, "net": 2}

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_MFT_ENTRY = struct.Struct("<68sI16sQB7s")


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One program header and its bytes; a field that is None is computed from the bytes."""

    data: bytes = b""
    type: int = PT_LOAD
    flags: int = PF_R
    vaddr: int = LOAD_ADDRESS
    paddr: int | None = None
    offset: int | None = None
    filesz: int | None = None
    memsz: int | None = None
    align: int = PAGE


@dataclass(frozen=True, kw_only=True)
class Note:
    """One note in its own PT_NOTE; a field that is None is computed from the bytes."""

    data: bytes
    type: int
    name: bytes = b"Solo5\0\0\0"
    namesz: int = 6
    descsz: int | None = None
    offset: int | None = None
    filesz: int | None = None


@dataclass(frozen=True, kw_only=True)
class MftEntry:
    """One entry of a manifest, with every byte of it."""

    name: bytes
    type: int
    params: bytes = b""
    host_private: int = 0
    attached: int = 0
    padding: bytes = b""

    def pack(self) -> bytes:
        """Returns the 104 bytes of the entry; a value that is too long is cut."""
        return _MFT_ENTRY.pack(
            self.name, self.type, self.params, self.host_private, self.attached, self.padding
        )


RESERVED_ENTRY = MftEntry(name=b"", type=MFT_RESERVED_FIRST)


def abi_note(target: int = TARGET_HVT, version: int = 2) -> Note:
    """Returns the note that names the tender for which a unikernel is built."""
    return Note(type=NOTE_ABI, data=struct.pack("<IIII", target, version, 0, 0))


def extension_note(version: int = 1, features: int = FEATURE_GATE) -> Note:
    """Returns our note, which names the features beyond Solo5's ABI that a unikernel knows."""
    return Note(
        type=NOTE_EXTENSION, name=b"Tender\0\0", namesz=7, data=struct.pack("<IIII", version, features, 0, 0)
    )


def device_entry(name: str | bytes, kind: str | int) -> MftEntry:
    """Returns the manifest entry of a device; `kind` is "net", "block" or a number."""
    return MftEntry(
        name=name.encode() if isinstance(name, str) else name,
        type=DEVICE_TYPES[kind] if isinstance(kind, str) else kind,
    )


def manifest_bytes(entries: Iterable[MftEntry], *, version: int = 1, count: int | None = None) -> bytes:
    """Returns a manifest of exactly these entries; the reserved first entry is not added."""
    packed = [entry.pack() for entry in entries]
    return struct.pack("<II", version, len(packed) if count is None else count) + b"".join(packed)


def raw_manifest_note(data: bytes) -> Note:
    """Returns a manifest note with these bytes as the manifest."""
    return Note(type=NOTE_MANIFEST, data=bytes(4) + data)


def manifest_note(devices: Iterable[tuple[str | bytes, str | int]] = ()) -> Note:
    """Returns the manifest note for devices given as (name, "net" or "block" or a number)."""
    entries = [RESERVED_ENTRY, *(device_entry(name, kind) for name, kind in devices)]
    return raw_manifest_note(manifest_bytes(entries))


def build_elf(
    *,
    segments: Sequence[Segment] = (),
    notes: Sequence[Note] = (),
    ident: bytes = b"\x7fELF\x02\x01\x01",
    e_type: int = ET_EXEC,
    e_machine: int = HOST_MACHINE,
    e_version: int = 1,
    e_entry: int = LOAD_ADDRESS,
    e_phoff: int = _EHDR.size,
    e_shoff: int = 0,
    e_flags: int = 0,
    e_ehsize: int = _EHDR.size,
    e_phentsize: int = _PHDR.size,
    e_phnum: int | None = None,
    e_shentsize: int = 0,
    e_shnum: int = 0,
    e_shstrndx: int = 0,
) -> bytes:
    """Returns an ELF of these segments in this order, followed by one PT_NOTE for each note."""
    count = len(segments) + len(notes)
    position = _align(_EHDR.size + count * _PHDR.size, 16)
    headers: list[bytes] = []
    body: list[tuple[int, bytes]] = []

    for segment in segments:
        if segment.data:
            # Linkers do the same: the offset is congruent with the address, modulo a page.
            position = _align(position, PAGE) + segment.vaddr % PAGE
        body.append((position, segment.data))
        headers.append(_segment_header(segment, position))
        position += len(segment.data)
    for note in notes:
        position = _align(position, 8)
        data = _note_bytes(note)
        body.append((position, data))
        headers.append(_note_header(note, position, len(data)))
        position += len(data)

    header = _EHDR.pack(
        ident, e_type, e_machine, e_version, e_entry, e_phoff, e_shoff, e_flags, e_ehsize, e_phentsize,
        count if e_phnum is None else e_phnum, e_shentsize, e_shnum, e_shstrndx,
    )  # fmt: skip
    file = bytearray(header + b"".join(headers))
    for offset, data in body:
        if data:
            file.extend(bytes(offset - len(file)))
            file.extend(data)
    return bytes(file)


def good_segments(code: bytes = b"\xf4") -> list[Segment]:
    """Returns the segments of a linked unikernel: text, rodata, data, the empty segment at 0, and bss."""
    after = LOAD_ADDRESS + _align(max(len(code), 1), PAGE)
    return [
        Segment(data=code, flags=PF_X, vaddr=LOAD_ADDRESS),
        Segment(data=b"read-only\0", flags=PF_R, vaddr=after),
        Segment(data=b"data\0" + bytes(27), flags=PF_R | PF_W, vaddr=after + PAGE, memsz=64),
        Segment(flags=PF_R, vaddr=0),
        Segment(flags=PF_R | PF_W, vaddr=after + 2 * PAGE, memsz=3 * PAGE + 8),
    ]


def good_elf(
    code: bytes = b"\xf4",
    devices: Iterable[tuple[str | bytes, str | int]] = (),
    *,
    abi_version: int = 2,
    entry: int = LOAD_ADDRESS,
) -> bytes:
    """Returns an ELF that is accepted: `code` at 1 MiB, which is also the entry by default, and a manifest of `devices`."""
    return build_elf(
        segments=good_segments(code),
        notes=[abi_note(version=abi_version), manifest_note(devices)],
        e_entry=entry,
    )


def with_segment(segments: Sequence[Segment], index: int, segment: Segment) -> list[Segment]:
    """Returns the segments with the one at `index` replaced."""
    return [segment if i == index else old for i, old in enumerate(segments)]


def changed(segments: Sequence[Segment], index: int, **fields: int | bytes | None) -> list[Segment]:
    """Returns the segments with these fields of the one at `index` changed."""
    return with_segment(segments, index, replace(segments[index], **fields))  # type: ignore[arg-type]


def _align(value: int, to: int) -> int:
    return (value + to - 1) // to * to


def _segment_header(segment: Segment, position: int) -> bytes:
    filesz = len(segment.data) if segment.filesz is None else segment.filesz
    return _PHDR.pack(
        segment.type,
        segment.flags,
        position if segment.offset is None else segment.offset,
        segment.vaddr,
        segment.vaddr if segment.paddr is None else segment.paddr,
        filesz,
        filesz if segment.memsz is None else segment.memsz,
        segment.align,
    )


def _note_bytes(note: Note) -> bytes:
    descsz = len(note.data) if note.descsz is None else note.descsz
    return struct.pack("<III8s", note.namesz, descsz, note.type, note.name) + note.data


def _note_header(note: Note, position: int, length: int) -> bytes:
    filesz = length if note.filesz is None else note.filesz
    offset = position if note.offset is None else note.offset
    return _PHDR.pack(PT_NOTE, PF_R, offset, 0, 0, filesz, filesz, 8)
