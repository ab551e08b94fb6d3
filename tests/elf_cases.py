"""ELFs that must be accepted, and ELFs that must be refused, each with the message of the refusal.

This is a table, not a test: the parser's tests, the command line's tests and the fuzzer's seeds all use it.
The contract defines the messages. The caller adds the prefix `FILE: `. The names are used as file names.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from elf_builder import (
    EM_AARCH64,
    EM_X86_64,
    ET_DYN,
    HOST_MACHINE,
    LOAD_ADDRESS,
    MFT_RESERVED_FIRST,
    NOTE_ABI,
    NOTE_EXTENSION,
    NOTE_MANIFEST,
    PAGE,
    PF_R,
    PF_W,
    PF_X,
    PT_INTERP,
    PT_TLS,
    RESERVED_ENTRY,
    TARGET_SPT,
    TARGET_XEN,
    MftEntry,
    Note,
    Segment,
    abi_note,
    build_elf,
    changed,
    device_entry,
    extension_note,
    good_elf,
    good_segments,
    manifest_bytes,
    manifest_note,
    raw_manifest_note,
)

GIB = 1 << 30
U64_MAX = (1 << 64) - 1

# The segments of good_segments(), by index.
TEXT, RODATA, DATA, EMPTY, BSS = range(5)
ABI_PHDR, MFT_PHDR = 5, 6

HEADER_INVALID = (
    "invalid executable: invalid or unsupported executable (elf header invalid while loading note)"
)
PHDR_SIZE = "program header does not match the expected size"
NO_ABI = "No Solo5 ABI information found in executable"
NO_MANIFEST = "No Solo5 manifest found in executable"
MANIFEST_INVALID = "Solo5 manifest is invalid"
FILE_RANGE = "program file segment falls outside of valid range"
MEMORY_RANGE = "program memory segment falls outside of valid range"
NOTE_SIZE = "note does not fall within valid size"


class Refused(NamedTuple):
    """An ELF, and a part of the message that refuses it."""

    name: str
    data: bytes
    message: str


class Accepted(NamedTuple):
    """An ELF that is accepted although it looks odd."""

    name: str
    data: bytes


def _good(segments: list[Segment] | None = None, **header: int | bytes) -> bytes:
    return build_elf(
        segments=good_segments() if segments is None else segments,
        notes=[abi_note(), manifest_note([("service0", "net")])],
        **header,  # type: ignore[arg-type]
    )


def _segment(index: int, **fields: int | bytes | None) -> bytes:
    return _good(changed(good_segments(), index, **fields))


def _notes(*notes: Note) -> bytes:
    return build_elf(segments=good_segments(), notes=notes)


def _abi(**fields: int | bytes) -> bytes:
    values: dict[str, object] = {"type": NOTE_ABI, "data": struct.pack("<IIII", 1, 2, 0, 0), **fields}
    return _notes(Note(**values), manifest_note())  # type: ignore[arg-type]


def _mft(**fields: int | bytes) -> bytes:
    values: dict[str, object] = {
        "type": NOTE_MANIFEST,
        "data": bytes(4) + manifest_bytes([RESERVED_ENTRY, device_entry("service0", "net")]),
        **fields,
    }
    return _notes(abi_note(), Note(**values))  # type: ignore[arg-type]


def _extension(**fields: int | bytes) -> bytes:
    values: dict[str, object] = {
        "type": NOTE_EXTENSION,
        "name": b"Tender\0\0",
        "namesz": 7,
        "data": struct.pack("<IIII", 1, 1, 0, 0),
        **fields,
    }
    return _notes(abi_note(), manifest_note(), Note(**values))  # type: ignore[arg-type]


def _manifest(*entries: MftEntry, version: int = 1, count: int | None = None) -> bytes:
    return _notes(abi_note(), raw_manifest_note(manifest_bytes(entries, version=version, count=count)))


def _many_segments(count: int) -> bytes:
    return _good([Segment(data=b"x", vaddr=LOAD_ADDRESS + i * PAGE, offset=0) for i in range(count)])


_NET = device_entry("service0", "net")
_DEVICES_63 = [(f"service{i}", "net") for i in range(63)]

_HEADER = [
    Refused("header-empty-file", b"", "elf header does not match the expected size (0 != 64)"),
    Refused("header-63-bytes", good_elf()[:63], "elf header does not match the expected size (63 != 64)"),
    Refused("header-not-elf", b"#!/bin/sh\n" + bytes(60), HEADER_INVALID),
    Refused("header-class-32", _good(ident=b"\x7fELF\x01\x01\x01"), HEADER_INVALID),
    Refused("header-big-endian", _good(ident=b"\x7fELF\x02\x02\x01"), HEADER_INVALID),
    Refused("header-version-0", _good(e_version=0), HEADER_INVALID),
    Refused("header-ehsize", _good(e_ehsize=52), HEADER_INVALID),
    Refused("header-phnum-0", _good(e_phnum=0), HEADER_INVALID),
    Refused("header-phentsize", _good(e_phentsize=32), HEADER_INVALID),
    Refused("header-pie", _good(e_type=ET_DYN), HEADER_INVALID),
    Refused("header-machine-386", _good(e_machine=3), HEADER_INVALID),
    Refused(
        "header-other-machine",
        _good(e_machine=EM_X86_64 if HOST_MACHINE == EM_AARCH64 else EM_AARCH64),
        HEADER_INVALID,
    ),
    Refused("phdr-no-table", good_elf()[:64], f"{PHDR_SIZE} (0 != 392 while loading note)"),
    Refused("phdr-half-table", good_elf()[:264], f"{PHDR_SIZE} (200 != 392 while loading note)"),
    Refused("phdr-past-end", _good(e_phoff=U64_MAX), PHDR_SIZE),
    Refused("phdr-65535", _good(e_phnum=0xFFFF), PHDR_SIZE),
]

_ENTRY_RANGE = "invalid executable: e_entry does not fall within the memory allocation range"
_ENTRY = [
    Refused("entry-0", _good(e_entry=0), _ENTRY_RANGE),
    Refused("entry-below-1-mib", _good(e_entry=LOAD_ADDRESS - 1), _ENTRY_RANGE),
    Refused("entry-4-gib", _good(e_entry=4 * GIB), _ENTRY_RANGE),
    Refused("entry-max", _good(e_entry=U64_MAX), _ENTRY_RANGE),
]

_SEGMENTS = [
    Refused(
        "segment-1-low",
        _segment(TEXT, vaddr=LOAD_ADDRESS - 1),
        "invalid executable: phdr[0].p_vaddr outside of valid memory range (1048575 < 1048576)",
    ),
    Refused("segment-1-null", _segment(TEXT, vaddr=0), "phdr[0].p_vaddr outside of valid memory range"),
    Refused(
        "segment-2-descending",
        _segment(TEXT, vaddr=LOAD_ADDRESS + 16 * PAGE),
        "phdr[1].p_vaddr is not in ascending order",
    ),
    Refused(
        "segment-3-align-0",
        _segment(TEXT, align=0),
        "phdr[0].p_vaddr is outside of memory range (align_down",
    ),
    Refused(
        "segment-3-align-3",
        _segment(RODATA, align=3),
        "phdr[1].p_vaddr is outside of memory range (align_down",
    ),
    Refused(
        "segment-4-align-2-mib",
        _segment(TEXT, align=0x200000),
        "phdr[0].p_vaddr_start is outside of memory range",
    ),
    Refused(
        "segment-5-overlap",
        _segment(RODATA, vaddr=LOAD_ADDRESS),
        "phdr[1].p_vaddr_start is outside of memory",
    ),
    Refused("segment-5-overlap-by-memsz", _segment(TEXT, memsz=PAGE + 1), "(e_end)"),
    Refused("segment-5-overlap-by-align", _segment(TEXT, align=LOAD_ADDRESS), "(e_end)"),
    Refused("segment-6-vaddr-4-gib", _segment(DATA, vaddr=4 * GIB), f"phdr[2] {FILE_RANGE}"),
    Refused("segment-6-overflow", _segment(DATA, filesz=U64_MAX), f"phdr[2] {FILE_RANGE}"),
    Refused("segment-6-past-4-gib", _segment(DATA, filesz=4 * GIB), f"phdr[2] {FILE_RANGE}"),
    Refused("segment-7-memsz-smaller", _segment(DATA, memsz=31), f"phdr[2] {MEMORY_RANGE}"),
    Refused("segment-7-overflow", _segment(DATA, memsz=U64_MAX), f"phdr[2] {MEMORY_RANGE}"),
    Refused(
        "segment-7-align-overflow",
        _segment(DATA, memsz=U64_MAX - LOAD_ADDRESS - 2 * PAGE),
        f"phdr[2] {MEMORY_RANGE}",
    ),
    Refused("segment-7-past-4-gib", _segment(DATA, memsz=4 * GIB), f"phdr[2] {MEMORY_RANGE}"),
    Refused("segment-9-short-file", _segment(DATA, offset=0x10_0000), "phdr[2] host file segment mismatched"),
    Refused("segment-9-offset-max", _segment(DATA, offset=U64_MAX), "phdr[2] host file segment mismatched"),
    Refused(
        "segment-10-start",
        _segment(DATA, vaddr=LOAD_ADDRESS + 2 * PAGE + 8, align=8),
        "phdr[2] p_vaddr_start not aligned with architectural page size",
    ),
    Refused("segment-10-end", _segment(DATA, align=8), "phdr[2] p_vaddr_end not aligned"),
    Refused(
        "segment-11-wx",
        _segment(TEXT, flags=PF_W | PF_X),
        "invalid executable: phdr[0] requests WRITE and EXEC permissions",
    ),
    Refused("segment-11-rwx", _segment(DATA, flags=7), "phdr[2] requests WRITE and EXEC permissions"),
    Refused("segment-129", _many_segments(129), "phdr[128]: more than 128 loadable segments"),
    Refused("bss-low", _segment(BSS, vaddr=PAGE), "phdr[4].p_vaddr outside of valid memory range"),
    Refused("bss-at-0", _segment(EMPTY, memsz=1), "phdr[3].p_vaddr outside of valid memory range"),
    Refused("bss-past-4-gib", _segment(BSS, memsz=4 * GIB), f"phdr[4] {MEMORY_RANGE}"),
    Refused("bss-overflow", _segment(BSS, vaddr=U64_MAX), f"phdr[4] {MEMORY_RANGE}"),
]

_ABI = [
    Refused("abi-no-notes", _notes(), NO_ABI),
    Refused("abi-missing", _notes(manifest_note()), NO_ABI),
    Refused("abi-namesz", _abi(namesz=5), NO_ABI),
    Refused("abi-name", _abi(name=b"Solo4\0\0\0"), NO_ABI),
    Refused("abi-name-without-nul", _abi(name=b"Solo5xxx"), NO_ABI),
    Refused("abi-type", _abi(type=NOTE_ABI + 1), NO_ABI),
    Refused("abi-note-19-bytes", _abi(filesz=19), NO_ABI),
    Refused("abi-note-11-bytes", _abi(filesz=11), f"phdr[5].p_filesz {NOTE_SIZE} (11 < 12)"),
    Refused("abi-descsz-0", _abi(descsz=0), f"phdr[5] {NOTE_SIZE}"),
    Refused("abi-descsz-7", _abi(descsz=7), f"phdr[5] {NOTE_SIZE} (7 < 8)"),
    Refused("abi-descsz-33", _abi(data=struct.pack("<II", 1, 2) + bytes(25)), f"phdr[5] {NOTE_SIZE}"),
    Refused("abi-descsz-past-segment", _abi(descsz=17), f"phdr[5] {NOTE_SIZE}"),
    Refused("abi-offset-past-end", _abi(offset=U64_MAX), "phdr[5] bytes read mismatches note size (0 != 20)"),
    Refused(
        "abi-spt",
        _notes(abi_note(target=TARGET_SPT), manifest_note()),
        "Executable is not for the solo5-hvt target (it is for spt)",
    ),
    Refused(
        "abi-xen",
        _notes(abi_note(target=TARGET_XEN), manifest_note()),
        "Executable is not for the solo5-hvt target (it is for xen)",
    ),
    Refused(
        "abi-target-99",
        _notes(abi_note(target=99), manifest_note()),
        "Executable is not for the solo5-hvt target (it is for unknown target 99)",
    ),
    Refused("abi-version-0", good_elf(abi_version=0), "Executable requests unsupported ABI version 0"),
    Refused("abi-version-3", good_elf(abi_version=3), "Executable requests unsupported ABI version 3"),
]

_MANIFEST = [
    Refused("mft-missing", _notes(abi_note()), NO_MANIFEST),
    Refused("mft-descsz-0", _mft(descsz=0), f"invalid executable: phdr[6] {NOTE_SIZE}"),
    Refused("mft-descsz-1", _mft(descsz=1), f"INV_EXE: phdr[6] {NOTE_SIZE} ("),
    Refused("mft-descsz-4", _mft(descsz=4), f"INV_EXE: phdr[6] {NOTE_SIZE} ("),
    Refused("mft-descsz-5", _mft(descsz=5), MANIFEST_INVALID),
    Refused("mft-descsz-6669", _mft(data=bytes(6669)), f"phdr[6] {NOTE_SIZE}"),
    Refused("mft-descsz-past-segment", _mft(descsz=4 + 8 + 104 * 3), f"phdr[6] {NOTE_SIZE}"),
    Refused("mft-version-0", _manifest(RESERVED_ENTRY, version=0), MANIFEST_INVALID),
    Refused("mft-version-2", _manifest(RESERVED_ENTRY, version=2), MANIFEST_INVALID),
    Refused("mft-no-entries", _manifest(), MANIFEST_INVALID),
    Refused("mft-count-smaller", _manifest(RESERVED_ENTRY, _NET, count=1), MANIFEST_INVALID),
    Refused("mft-count-larger", _manifest(RESERVED_ENTRY, _NET, count=3), MANIFEST_INVALID),
    Refused("mft-count-huge", _manifest(RESERVED_ENTRY, _NET, count=0xFFFFFFFF), MANIFEST_INVALID),
    Refused("mft-first-not-reserved", _manifest(_NET), MANIFEST_INVALID),
    Refused(
        "mft-first-has-name",
        _manifest(MftEntry(name=b"a", type=MFT_RESERVED_FIRST)),
        MANIFEST_INVALID,
    ),
    Refused(
        "mft-name-without-nul", _manifest(RESERVED_ENTRY, device_entry(b"a" * 68, "net")), MANIFEST_INVALID
    ),
    Refused(
        "mft-attached",
        _manifest(RESERVED_ENTRY, MftEntry(name=b"service0", type=2, attached=1)),
        MANIFEST_INVALID,
    ),
    Refused(
        "mft-64-devices",
        _notes(abi_note(), manifest_note([*_DEVICES_63, ("one-more", "net")])),
        f"phdr[6] {NOTE_SIZE}",
    ),
]

_EXTENSION = [
    Refused("ext-descsz-0", _extension(descsz=0), f"invalid executable: phdr[7] {NOTE_SIZE} (0 < 1"),
    Refused("ext-descsz-7", _extension(descsz=7), f"phdr[7] {NOTE_SIZE} (7 < 8)"),
    Refused("ext-descsz-65", _extension(data=bytes(65)), f"phdr[7] {NOTE_SIZE}"),
    Refused("ext-descsz-max", _extension(descsz=0xFFFFFFFF), f"phdr[7] {NOTE_SIZE}"),
    Refused("ext-descsz-past-segment", _extension(descsz=17), f"phdr[7] {NOTE_SIZE} (36 < 37)"),
    Refused(
        "ext-past-end-of-file",
        _extension(descsz=32, filesz=52),
        "phdr[7] bytes read mismatches note size (16 != 32)",
    ),
]

_ORDER = [
    Refused(
        "order-target-before-version",
        _notes(abi_note(target=2, version=9)),
        "Executable is not for the solo5-hvt",
    ),
    Refused("order-version-before-manifest", _notes(abi_note(version=9)), "unsupported ABI version 9"),
    Refused("order-manifest-before-entry", build_elf(notes=[abi_note()], e_entry=0), NO_MANIFEST),
    Refused(
        "order-entry-before-segments", _good(changed(good_segments(), TEXT, flags=7), e_entry=0), "e_entry"
    ),
    Refused(
        "order-vaddr-before-permissions",
        _segment(TEXT, vaddr=0, flags=7),
        "phdr[0].p_vaddr outside of valid memory range",
    ),
]

REFUSED: list[Refused] = [*_HEADER, *_ENTRY, *_SEGMENTS, *_ABI, *_MANIFEST, *_EXTENSION, *_ORDER]

ACCEPTED: list[Accepted] = [
    Accepted("good", good_elf()),
    Accepted("good-net-and-block", good_elf(devices=[("service0", "net"), ("storage", "block")])),
    Accepted("good-63-devices", good_elf(devices=_DEVICES_63)),
    Accepted("good-abi-version-1", good_elf(abi_version=1)),
    Accepted("good-long-code", good_elf(code=b"\x90" * 5000 + b"\xf4")),
    Accepted("odd-ident", _good(ident=b"\x7fELF\x02\x01\x00\xff\xff")),
    Accepted("odd-sections", _good(e_shoff=U64_MAX, e_shentsize=64, e_shnum=99, e_shstrndx=7)),
    Accepted("odd-entry-in-heap", _good(e_entry=0x200000)),
    Accepted("odd-only-notes", build_elf(notes=[abi_note(), manifest_note()])),
    Accepted("odd-128-segments", _many_segments(128)),
    Accepted("odd-no-permissions", _segment(DATA, flags=0)),
    Accepted("odd-bss-align", _segment(BSS, align=3)),
    Accepted("odd-bss-to-4-gib", _segment(BSS, memsz=4 * GIB - LOAD_ADDRESS - 3 * PAGE)),
    Accepted("odd-empty-load-far-away", _segment(EMPTY, vaddr=U64_MAX, align=0, flags=7)),
    Accepted(
        "odd-other-segments",
        _good(
            [
                *good_segments(),
                Segment(type=PT_INTERP, filesz=U64_MAX),
                Segment(type=PT_TLS, vaddr=1, flags=7),
            ]
        ),
    ),
    Accepted("odd-text-readable", _segment(TEXT, flags=PF_R | PF_X)),
    Accepted(
        "odd-other-notes-first",
        _notes(Note(type=1, data=b"data", name=b"OpenBSD\0", namesz=8), manifest_note(), abi_note()),
    ),
    Accepted(
        "odd-bad-note-after-ours", _notes(abi_note(), manifest_note(), Note(type=1, data=b"", filesz=1))
    ),
    Accepted("good-extension", _extension()),
    Accepted("odd-extension-first", _notes(extension_note(), abi_note(), manifest_note())),
    Accepted("odd-extension-other-version", _notes(abi_note(), manifest_note(), extension_note(version=2))),
    Accepted("odd-extension-unknown-bits", _extension(data=struct.pack("<II", 1, 0xFFFFFFFF))),
    Accepted("odd-extension-64-bytes", _extension(data=struct.pack("<II", 1, 1) + bytes(56))),
    Accepted("odd-extension-11-bytes", _extension(filesz=11)),
    Accepted("odd-extension-name-without-nul", _extension(name=b"Tenderxx")),
    Accepted("odd-extension-offset-past-end", _extension(offset=U64_MAX)),
    Accepted(
        "odd-empty-note-after-ours", _notes(abi_note(), manifest_note(), Note(type=1, data=b"", filesz=0))
    ),
    Accepted("odd-abi-note-8-bytes", _abi(data=struct.pack("<II", 1, 2))),
    Accepted("odd-device-type", good_elf(devices=[("service0", 3), ("service1", 0)])),
    Accepted(
        "odd-device-names",
        good_elf(devices=[(b"", "net"), (b"\xff\x1b[2J", "net"), ("same", 1), ("same", 1)]),
    ),
    Accepted(
        "odd-parameters-in-file",
        _manifest(RESERVED_ENTRY, MftEntry(name=b"service0", type=2, params=b"\2" * 16, host_private=9)),
    ),
]
