"""Every rule that refuses an ELF, with the message that users and scripts see, and the odd files that are
accepted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from elf_builder import (
    LOAD_ADDRESS,
    NOTE_ABI,
    PAGE,
    PF_R,
    PF_W,
    PF_X,
    RESERVED_ENTRY,
    MftEntry,
    Note,
    abi_note,
    build_elf,
    extension_note,
    good_elf,
    good_segments,
    manifest_bytes,
    manifest_note,
    raw_manifest_note,
)
from elf_cases import ACCEPTED, REFUSED, Accepted, Refused

from tender.errors import ImageError
from tender.native import ParsedElf, parse_elf_bytes

Parse = Callable[[bytes], ParsedElf]


@pytest.fixture(name="parse")
def parse_fixture() -> Parse:
    return parse_elf_bytes


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_bad_elf_is_refused_with_the_contracts_message(parse: Parse, case: Refused) -> None:
    with pytest.raises(ImageError) as caught:
        parse(case.data)
    assert case.message in str(caught.value)


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.name)
def test_odd_but_harmless_elf_is_accepted(parse: Parse, case: Accepted) -> None:
    parse(case.data)


def test_case_names_are_unique() -> None:
    """They are the file names of the fuzzer's seeds."""
    names = [*(case.name for case in REFUSED), *(case.name for case in ACCEPTED)]
    assert len(names) == len(set(names))


def test_segments_are_whole_pages_with_the_flags_of_the_file(parse: Parse) -> None:
    image = parse(good_elf(code=b"\x90" * (PAGE + 1)))

    assert [(s.start, s.end) for s in image.segments] == [
        (LOAD_ADDRESS, LOAD_ADDRESS + 2 * PAGE),
        (LOAD_ADDRESS + 2 * PAGE, LOAD_ADDRESS + 3 * PAGE),
        (LOAD_ADDRESS + 3 * PAGE, LOAD_ADDRESS + 4 * PAGE),
    ]
    assert [s.flags for s in image.segments] == [PF_X, PF_R, PF_R | PF_W]
    assert [s.file_bytes for s in image.segments] == [PAGE + 1, 10, 32]
    assert [s.mem_bytes for s in image.segments] == [PAGE + 1, 10, 64]


def test_file_offset_points_at_the_bytes(parse: Parse) -> None:
    data = good_elf(code=b"code here")

    text = parse(data).segments[0]

    assert data[text.file_offset : text.file_offset + text.file_bytes] == b"code here"


def test_kernel_end_leaves_out_bss_and_bss_end_does_not(parse: Parse) -> None:
    image = parse(good_elf())

    assert image.kernel_end == LOAD_ADDRESS + 3 * PAGE
    assert image.bss_end == LOAD_ADDRESS + 7 * PAGE


def test_entry_and_abi_come_from_the_file(parse: Parse) -> None:
    image = parse(good_elf(abi_version=1, entry=LOAD_ADDRESS + 0x20))

    assert (image.entry, image.abi_target, image.abi_version) == (LOAD_ADDRESS + 0x20, 1, 1)


def test_devices_are_in_the_order_of_their_handles(parse: Parse) -> None:
    image = parse(good_elf(devices=[("service0", "net"), ("storage", "block"), ("service1", "net")]))

    assert image.devices == [(b"service0", 2), (b"storage", 1), (b"service1", 2)]


def test_device_names_are_the_bytes_up_to_the_nul(parse: Parse) -> None:
    entries = [RESERVED_ENTRY, MftEntry(name=b"\xff\x1b\0rest", type=2), MftEntry(name=b"a" * 67, type=9)]
    data = build_elf(segments=good_segments(), notes=[abi_note(), raw_manifest_note(manifest_bytes(entries))])

    assert parse(data).devices == [(b"\xff\x1b", 2), (b"a" * 67, 9)]


def test_first_abi_note_wins(parse: Parse) -> None:
    data = build_elf(
        segments=good_segments(), notes=[abi_note(version=1), abi_note(target=2), manifest_note()]
    )

    assert parse(data).abi_version == 1


def test_first_manifest_note_wins(parse: Parse) -> None:
    data = build_elf(
        segments=good_segments(),
        notes=[abi_note(), manifest_note([("first", "net")]), manifest_note([("second", "net")])],
    )

    assert parse(data).devices == [(b"first", 2)]


@pytest.mark.parametrize(
    ("notes", "extensions"),
    [
        ([], 0),
        ([extension_note()], 1),
        ([extension_note(features=0)], 0),
        ([extension_note(features=0xFFFFFFFF)], 15),
        ([extension_note(features=0xFFFFFFFE)], 0),  # no feature works without the gate
        ([extension_note(version=0)], 0),
        ([extension_note(version=2)], 0),
        ([extension_note(features=0), extension_note()], 0),
        ([replace(extension_note(), name=b"Tender\0x")], 1),
        ([replace(extension_note(), name=b"Tenderxx")], 0),
        ([replace(extension_note(), name=b"tender\0\0")], 0),
        ([replace(extension_note(), namesz=6)], 0),
        ([replace(extension_note(), type=NOTE_ABI)], 0),
        ([replace(extension_note(), name=b"Solo5\0\0\0", namesz=6)], 0),
        ([replace(extension_note(), filesz=19)], 0),
        ([replace(extension_note(), offset=(1 << 64) - 1)], 0),
        ([replace(extension_note(), filesz=0), extension_note()], 1),
    ],
)
def test_extensions_are_the_known_ones_that_our_note_requests(
    parse: Parse, notes: list[Note], extensions: int
) -> None:
    data = build_elf(segments=good_segments(), notes=[abi_note(), manifest_note(), *notes])

    assert parse(data).extensions == extensions


def test_a_note_with_solo5s_type_and_our_name_is_ignored(parse: Parse) -> None:
    data = build_elf(
        segments=good_segments(),
        notes=[replace(abi_note(version=9), name=b"Tender\0\0", namesz=7), abi_note(), manifest_note()],
    )

    assert (parse(data).abi_version, parse(data).extensions) == (2, 0)
