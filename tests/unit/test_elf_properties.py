"""For every file one of two things holds: it is accepted and keeps the promises, or it is refused with
ImageError.

The second half compares the result with pyelftools, which shares no code with the parser.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import pytest
from elf_builder import (
    LOAD_ADDRESS,
    PAGE,
    PF_R,
    PF_W,
    PF_X,
    Note,
    Segment,
    abi_note,
    build_elf,
    extension_note,
    good_segments,
    manifest_note,
)
from elf_cases import ACCEPTED, Accepted
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from tender.errors import ImageError
from tender.native import ParsedElf, parse_elf_bytes

GIB = 1 << 30
GOOD = build_elf(
    segments=good_segments(),
    notes=[abi_note(), manifest_note([("service0", "net"), ("storage", "block")]), extension_note()],
)
HEADERS_END = 64 + 8 * 56

INTERESTING = st.sampled_from(
    [
        *(0, 1, 2, 4, 7, 8, 12, 19, 20, 24, 36, 64, 104, 0x1000, 0xFFFFF, 0x100000, 0x101000, 0x200000),
        *((1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
    ]
)
WORDS = st.one_of(INTERESTING, st.integers(min_value=0, max_value=(1 << 64) - 1))

# A change writes 1, 2, 4 or 8 bytes; most changes are in the headers and the notes.
CHANGES = st.lists(
    st.tuples(
        st.one_of(st.integers(0, HEADERS_END - 1), st.integers(0, len(GOOD) - 1)),
        st.sampled_from(["<B", "<H", "<I", "<Q"]),
        WORDS,
    ),
    min_size=1,
    max_size=6,
)


def apply(data: bytes, changes: list[tuple[int, str, int]]) -> bytes:
    file = bytearray(data)
    for offset, layout, value in changes:
        size = struct.calcsize(layout)
        file[offset : offset + size] = struct.pack(layout, value & ((1 << 8 * size) - 1))
    return bytes(file)


def check_promises(image: ParsedElf, size: int) -> None:
    assert LOAD_ADDRESS <= image.entry < 4 * GIB
    assert image.abi_target == 1
    assert image.abi_version in (1, 2)
    assert image.extensions in (0, 1, 3, 5, 7, 13, 15)
    assert len(image.segments) <= 128
    assert len(image.devices) <= 63
    assert all(len(name) <= 67 and b"\0" not in name for name, _ in image.devices)
    end = LOAD_ADDRESS
    for segment in image.segments:
        assert end <= segment.start <= segment.vaddr < segment.end <= 4 * GIB
        assert segment.start % PAGE == segment.end % PAGE == 0
        assert 0 < segment.file_bytes <= segment.mem_bytes <= segment.end - segment.vaddr
        assert segment.file_offset + segment.file_bytes <= size
        assert segment.flags & (PF_W | PF_X) != PF_W | PF_X
        end = segment.end
    assert image.kernel_end == (end if image.segments else 0)
    assert image.kernel_end <= image.bss_end <= 4 * GIB


def check_any(data: bytes) -> None:
    try:
        image = parse_elf_bytes(data)
    except ImageError as error:
        assert str(error)
    else:
        check_promises(image, len(data))


@given(changes=CHANGES)
def test_changed_file_is_parsed_or_refused(changes: list[tuple[int, str, int]]) -> None:
    check_any(apply(GOOD, changes))


@given(length=st.integers(0, len(GOOD)))
def test_shortened_file_is_parsed_or_refused(length: int) -> None:
    check_any(GOOD[:length])


@given(data=st.binary(max_size=4096))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        parse_elf_bytes(data)


@given(data=st.binary(max_size=512))
def test_random_bytes_after_a_good_header_are_parsed_or_refused(data: bytes) -> None:
    check_any(GOOD[:64] + data)


SEGMENTS = st.lists(
    st.builds(
        Segment,
        data=st.binary(max_size=64),
        flags=st.integers(0, 7),
        vaddr=st.one_of(
            WORDS, st.integers(0, 64).map(lambda page: LOAD_ADDRESS + page * PAGE), st.integers(0, 1 << 22)
        ),
        memsz=st.one_of(st.none(), WORDS),
        filesz=st.one_of(st.none(), st.integers(0, 128)),
        align=st.one_of(st.just(PAGE), WORDS),
    ),
    max_size=8,
)


@given(segments=SEGMENTS)
def test_segments_of_any_kind_are_parsed_or_refused(segments: list[Segment]) -> None:
    check_any(build_elf(segments=segments, notes=[abi_note(), manifest_note()]))


@st.composite
def good_layouts(draw: st.DrawFn) -> list[Segment]:
    """Segments that keep all rules: ascending, without overlap, readable or executable."""
    segments = []
    vaddr = LOAD_ADDRESS
    for _ in range(draw(st.integers(1, 6))):
        vaddr += draw(st.integers(0, 3)) * PAGE
        inside = draw(st.integers(0, PAGE - 1))
        data = draw(st.binary(min_size=1, max_size=200))
        memsz = len(data) + draw(st.integers(0, 3 * PAGE))
        flags = draw(st.sampled_from([0, PF_R, PF_X, PF_R | PF_X, PF_W, PF_R | PF_W]))
        segments.append(Segment(data=data, vaddr=vaddr + inside, memsz=memsz, flags=flags))
        vaddr = (vaddr + inside + memsz + PAGE - 1) // PAGE * PAGE
    return segments


def check_agreement(data: bytes) -> None:
    image = parse_elf_bytes(data)
    check_promises(image, len(data))
    other = ELFFile(io.BytesIO(data))
    loads = [segment.header for segment in other.iter_segments() if segment["p_type"] == "PT_LOAD"]
    filled = [header for header in loads if header.p_filesz > 0]

    assert image.entry == other.header.e_entry
    assert [(s.vaddr, s.file_offset, s.file_bytes, s.mem_bytes, s.flags) for s in image.segments] == [
        (h.p_vaddr, h.p_offset, h.p_filesz, h.p_memsz, h.p_flags) for h in filled
    ]
    ends = [h.p_vaddr + h.p_memsz for h in loads if h.p_memsz > 0]
    assert image.bss_end >= max(ends, default=0)
    abi, manifest, extension = notes_of(other)
    assert (image.abi_target, image.abi_version) == struct.unpack_from("<II", abi)
    version, features = struct.unpack_from("<II", extension)
    assert image.extensions == (
        features & (15 if features & 4 else 3) if version == 1 and features & 1 else 0
    )
    count = struct.unpack_from("<II", manifest, 4)[1]
    assert len(image.devices) == count - 1
    for handle, (name, kind) in enumerate(image.devices, start=1):
        at = 4 + 8 + 104 * handle
        assert name == manifest[at : at + 68].split(b"\0")[0]
        assert kind == struct.unpack_from("<I", manifest, at + 68)[0]


def notes_of(file: Any) -> tuple[bytes, bytes, bytes]:
    """Returns the descriptors of the first ABI, manifest and extension notes (zeros if there is no
    extension note)."""
    found: dict[tuple[str, int], bytes] = {}
    for segment in file.iter_segments():
        if segment["p_type"] != "PT_NOTE" or segment["p_filesz"] < 20:
            continue
        note = next(iter(segment.iter_notes()))
        if note["n_name"] in ("Solo5", "Tender"):
            found.setdefault((note["n_name"], int(note["n_type"])), note["n_descdata"])
    extension = found.get(("Tender", 0x31444E54), bytes(8))
    return found["Solo5", 0x31494241], found["Solo5", 0x3154464D], extension


@given(
    segments=good_layouts(),
    devices=st.lists(st.tuples(st.binary(max_size=67), st.integers(0, 9)), max_size=5),
    extension=st.lists(st.builds(extension_note, st.integers(0, 2), st.integers(0, 3)), max_size=2),
)
def test_pyelftools_reads_the_same(
    segments: list[Segment], devices: list[tuple[str | bytes, str | int]], extension: list[Note]
) -> None:
    notes = [abi_note(), manifest_note(devices), *extension]
    check_agreement(build_elf(segments=segments, notes=notes))


# pyelftools reads section headers first, and every note of a segment; in these files they are odd.
BEYOND_PYELFTOOLS = {
    *("odd-sections", "odd-ident", "odd-other-segments"),
    *("odd-extension-offset-past-end", "odd-extension-name-without-nul"),
}


@pytest.mark.parametrize(
    "case", [case for case in ACCEPTED if case.name not in BEYOND_PYELFTOOLS], ids=lambda case: case.name
)
def test_pyelftools_agrees_about_odd_files(case: Accepted) -> None:
    check_agreement(case.data)
