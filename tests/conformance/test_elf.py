"""Which ELF files are accepted, rule by rule. Files that must be refused go through the command, which must
print the contract's messages in the contract's order. Files that must be accepted are booted.

tests/elf_cases.py is the table of refused files and their messages; the parser's own tests use it too. Here
each row shows what a user of solo5-hvt sees. The rules that depend on --mem follow, and then the boots.
"""

import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bare import DATA, HEAP, MIB, TEXT, Bare
from elf_builder import (
    PAGE,
    PF_R,
    PF_W,
    PF_X,
    PT_INTERP,
    PT_NULL,
    PT_TLS,
    Segment,
    build_elf,
)
from elf_cases import REFUSED, Refused

from tender import ExitReason, Image

backends = pytest.mark.backends
Solo5 = Callable[..., "subprocess.CompletedProcess[str]"]
PT_GNU_STACK, PT_GNU_RELRO = 0x6474E551, 0x6474E552
U64_MAX = (1 << 64) - 1
PLACE = 0x180000
"""The address of a row's additional segment: within 2 MiB, after text and data."""


# ---- refused


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_a_refusal_is_one_line(solo5: Solo5, tmp_path: Path, case: Refused) -> None:
    """The status is 1, nothing is on stdout, and stderr has one line: the command's name, the file's name,
    the reason."""
    (tmp_path / "bad.hvt").write_bytes(case.data)
    done = solo5("--mem=4096", "bad.hvt")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("solo5-hvt: bad.hvt: ") and case.message in done.stderr


FILE_RANGE = "phdr[2] program file segment falls outside of valid range"
MEMORY_RANGE = "phdr[2] program memory segment falls outside of valid range"
BSS_RANGE = "program memory segment falls outside of valid range"


def with_segments_of(guest: Bare, *more: Segment, **header: Any) -> bytes:
    """Returns the guest with these segments after its own."""
    return build_elf(segments=[*guest.segments(), *more], notes=guest.notes(), **header)


def with_segments(*more: Segment, **header: Any) -> bytes:
    """Returns a guest that halts with 0, with these segments after its own."""
    guest = Bare()
    guest.halt()
    return with_segments_of(guest, *more, **header)


MEM = 4
END = MEM * MIB
TOO_FAR = {
    "entry": (with_segments(e_entry=END), "e_entry does not fall within the memory allocation range"),
    "vaddr": (with_segments(Segment(data=b"x", vaddr=END)), FILE_RANGE),
    "bytes": (with_segments(Segment(data=bytes(PAGE + 1), vaddr=END - PAGE)), FILE_RANGE),
    "memory": (with_segments(Segment(data=bytes(PAGE), vaddr=END - PAGE, memsz=PAGE + 1)), MEMORY_RANGE),
    "bss": (with_segments(Segment(vaddr=END - MIB, memsz=MIB + 1)), BSS_RANGE),
    "bss outside": (with_segments(Segment(vaddr=END, memsz=1)), BSS_RANGE),
}
FITS = {
    "entry": with_segments(e_entry=END - 1),
    "bytes": with_segments(Segment(data=b"x", vaddr=END - PAGE, memsz=PAGE)),
    "bss": with_segments(Segment(vaddr=END - MIB, memsz=MIB)),
}


@pytest.mark.parametrize(("data", "said"), TOO_FAR.values(), ids=TOO_FAR)
def test_entry_and_every_segment_must_lie_within_memory(
    solo5: Solo5, tmp_path: Path, data: bytes, said: str
) -> None:
    """This includes bss. With more memory the image fits."""
    (tmp_path / "far.hvt").write_bytes(data)
    done = solo5(f"--mem={MEM}", "far.hvt")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"solo5-hvt: far.hvt: invalid executable: {said}")
    with Image.from_bytes(data) as image:
        image.check_fits((MEM + 2) * MIB)


@pytest.mark.parametrize("data", FITS.values(), ids=FITS)
def test_memory_can_be_used_to_its_end(data: bytes) -> None:
    with Image.from_bytes(data) as image:
        image.check_fits(MEM * MIB)


@pytest.mark.parametrize(
    ("segments", "said"),
    [
        # each breaks a rule and the rules after it: the first broken rule is reported
        ([Segment(data=b"x", vaddr=0x1000, align=3, flags=7)], "p_vaddr outside of valid memory range"),
        ([Segment(data=b"x", vaddr=TEXT + 8, align=3, flags=7)], "p_vaddr is not in ascending order"),
        ([Segment(data=b"x", vaddr=PLACE, align=3, memsz=0, flags=7)], "(align_down"),
        ([Segment(data=b"x", vaddr=PLACE, align=0x200000, memsz=0, flags=7)], "p_vaddr_start is outside of memory range"),
        ([Segment(data=b"x", vaddr=DATA + 8, align=8, memsz=0, flags=7)], "(e_end)"),
        ([Segment(data=b"x", vaddr=PLACE, filesz=U64_MAX, memsz=0, flags=7)], "program file segment falls outside"),
        ([Segment(data=b"x", vaddr=PLACE, offset=1 << 40, memsz=0, flags=7)], "program memory segment falls outside"),
        ([Segment(data=b"x", vaddr=PLACE + 8, align=8, offset=1 << 40, flags=7)], "host file segment mismatched"),
        ([Segment(data=b"x", vaddr=PLACE + 8, align=8, flags=7)], "p_vaddr_start not aligned"),
        ([Segment(data=b"x", vaddr=PLACE, align=8, flags=7)], "p_vaddr_end not aligned"),
        ([Segment(data=b"x", vaddr=PLACE, flags=7)], "requests WRITE and EXEC permissions"),
        # all rules of a segment come before those of the next segment
        (
            [Segment(data=b"x", vaddr=PLACE, flags=7), Segment(data=b"x", vaddr=0)],
            "phdr[2] requests WRITE and EXEC permissions",
        ),
    ],
    ids=[*map(str, (1, 2, 3, 4, 5, 6, 7, 9)), "10 start", "10 end", "11", "table order"],
)  # fmt: skip
def test_the_first_broken_rule_is_reported(
    solo5: Solo5, tmp_path: Path, segments: list[Segment], said: str
) -> None:
    (tmp_path / "bad.hvt").write_bytes(with_segments(*segments))
    done = solo5("bad.hvt")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert said in done.stderr


# ---- accepted: a boot shows it


def boots(elf: bytes, mem: int = 2) -> None:
    result = Bare().run(elf, mem=mem).result
    assert result.ok, result.message


HEADERS: dict[str, dict[str, int]] = {
    "stripped": {},
    "section table past the end": {"e_shoff": 1 << 40, "e_shentsize": 64, "e_shnum": 40, "e_shstrndx": 39},
    "section table cut": {"e_shoff": PAGE, "e_shentsize": 64, "e_shnum": 0xFFFF, "e_shstrndx": 3},
    "flags": {"e_flags": 0xFFFFFFFF},
}


@backends
@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_sections_and_flags_are_ignored(header: dict[str, int]) -> None:
    boots(with_segments(**header))


@backends
@pytest.mark.parametrize("ident", ["7f454c46020101ffff", "7f454c460201000300", "7f454c4602010109" + "ff" * 8])
def test_the_rest_of_ident_is_ignored(ident: str) -> None:
    """These are its version, the operating system, that system's version, and padding."""
    boots(with_segments(ident=bytes.fromhex(ident)))


@backends
def test_debug_sections_are_not_loaded(guest: Callable[[str], Path]) -> None:
    """Our guests have megabytes of sections that belong to no segment."""
    path = guest("hello")
    sections = subprocess.run(
        ["readelf", "-SW", str(path)], capture_output=True, text=True, check=True
    ).stdout
    assert ".debug_info" in sections and ".symtab" in sections
    boots(path.read_bytes())


@backends
@pytest.mark.parametrize("flags", [PF_X, PF_R | PF_X], ids=["X", "RX"])
def test_text_may_be_execute_only(flags: int) -> None:
    guest = Bare()
    guest.halt()
    text, data = guest.segments()
    boots(build_elf(segments=[replace(text, flags=flags), data], notes=guest.notes()))


OTHERS = {
    "no TLS data: an empty segment at 0": [Segment(flags=PF_R, vaddr=0)],
    "an empty segment anywhere": [Segment(flags=7, vaddr=U64_MAX, align=0, offset=U64_MAX)],
    "TLS": [Segment(type=PT_TLS, data=b"tdata", vaddr=8, memsz=1 << 40, align=64)],
    "PT_NULL": [Segment(type=PT_NULL, filesz=U64_MAX, memsz=U64_MAX, flags=7)],
    "GNU": [Segment(type=PT_GNU_STACK, flags=7), Segment(type=PT_GNU_RELRO, vaddr=1, filesz=U64_MAX)],
    "interpreter": [Segment(type=PT_INTERP, data=b"/nonexistent/solo5/\0")],
    "interpreter past the end": [Segment(type=PT_INTERP, filesz=U64_MAX, offset=U64_MAX)],
    "unknown": [Segment(type=0x70000001, filesz=U64_MAX, vaddr=1, flags=7)],
}


@backends
@pytest.mark.parametrize("others", OTHERS.values(), ids=OTHERS)
def test_segments_without_loadable_bytes_are_ignored(others: Sequence[Segment]) -> None:
    """They are placed before the others in the table, between them, and after them."""
    guest = Bare()
    guest.halt()
    text, data = guest.segments()
    for segments in ([*others, text, data], [text, *others, data], [text, data, *others]):
        boots(build_elf(segments=segments, notes=guest.notes()))


@backends
def test_bss_is_zero_however_the_image_declares_it() -> None:
    """Bss can be the memory after a segment's file bytes, or a segment of its own, aligned or not. The
    bytes between are zero too."""
    guest = Bare()
    tail, page, alone, odd = (
        guest.load(gpa) for gpa in (PLACE + 8, PLACE + PAGE, PLACE + 4 * PAGE, PLACE + 8 * PAGE + 16)
    )
    for gpa in (PLACE + PAGE, PLACE + 4 * PAGE, PLACE + 8 * PAGE + 16):
        guest.store(gpa, 1)
    guest.halt()
    more = [
        Segment(data=b"\xff" * 8, flags=PF_R | PF_W, vaddr=PLACE, memsz=3 * PAGE),
        Segment(flags=PF_R | PF_W, vaddr=PLACE + 4 * PAGE, memsz=PAGE),
        Segment(flags=PF_R | PF_W, vaddr=PLACE + 8 * PAGE + 16, memsz=100, align=16),
    ]
    ran = guest.run(with_segments_of(guest, *more))
    assert ran.result.ok, ran.result.message
    assert [ran.at(one) for one in (tail, page, alone, odd)] == [(0,)] * 4


@backends
def test_bytes_of_the_file_around_a_segment_are_not_loaded() -> None:
    """Where the file continues with other bytes, the rest of a segment's last page is zero."""
    guest = Bare()
    first, seen, before = guest.load(PLACE), guest.load(PLACE + 8), guest.load(PLACE - 8)
    guest.halt()
    whole = Segment(data=b"\xff" * 2 * PAGE, vaddr=PLACE, filesz=8, memsz=8)
    ran = guest.run(with_segments_of(guest, whole))
    assert [ran.at(first), ran.at(seen), ran.at(before)] == [(U64_MAX,), (0,), (0,)]


@backends
def test_an_address_need_not_be_congruent_with_its_offset_nor_match_its_physical_one() -> None:
    guest = Bare()
    seen = guest.load(PLACE)
    guest.halt()
    length = len(with_segments_of(guest, Segment(vaddr=PLACE)))
    elf = with_segments_of(guest, Segment(vaddr=PLACE, paddr=U64_MAX, offset=length + 5, filesz=8))
    ran = guest.run(elf.ljust(length + 5, b"\xee") + b"anywhere")
    assert ran.result.ok and ran.at(seen) == struct.unpack("<Q", b"anywhere")


@backends
@pytest.mark.parametrize(
    ("vaddr", "align", "memsz"),
    [
        (PLACE, 1, PAGE),  # valid although smaller than a page: both ends happen to be aligned
        (PLACE, 8, PAGE),
        (PLACE, 2 * PAGE, 1),
        (PLACE, 0x80000, 8),
        (PLACE + 8, PAGE, PAGE),  # begins within its first page
        (0x300000, 0x100000, 1),
        (0x2FF000, 0x200, PAGE),
    ],
)
def test_any_alignment_of_a_power_of_two_that_gives_whole_pages(vaddr: int, align: int, memsz: int) -> None:
    guest = Bare()
    seen = guest.load(vaddr)
    guest.halt()
    more = Segment(data=b"A", vaddr=vaddr, align=align, memsz=memsz)
    ran = guest.run(with_segments_of(guest, more), mem=4)
    assert ran.result.ok and ran.at(seen)[0] & 0xFF == ord("A"), ran.result.message


@backends
def test_128_segments_are_loaded() -> None:
    guest = Bare()
    seen = [guest.load(PLACE + number * PAGE) for number in range(126)]
    guest.halt()
    more = [
        Segment(data=struct.pack("<Q", 1000 + number), vaddr=PLACE + number * PAGE) for number in range(126)
    ]
    ran = guest.run(with_segments_of(guest, *more), mem=4)
    assert [ran.at(one)[0] for one in seen] == [1000 + number for number in range(126)]


@backends
def test_an_image_of_48_mebibytes_is_loaded_to_its_last_byte() -> None:
    """Most of it is bytes of the file, as in a large unikernel."""
    guest = Bare()
    bulk = bytearray(48 * MIB)
    places = [0, 4096, 7 * MIB + 40, 48 * MIB - 8]
    for number, at in enumerate(places):
        struct.pack_into("<Q", bulk, at, 0x1111 * (number + 1))
    seen = [guest.load(2 * MIB + at) for at in places]
    guest.halt()
    more = Segment(data=bytes(bulk), vaddr=2 * MIB)
    ran = guest.run(with_segments_of(guest, more), mem=64)
    assert [ran.at(one)[0] for one in seen] == [0x1111, 0x2222, 0x3333, 0x4444]


@backends
@pytest.mark.parametrize("where", ["constants", "data", "heap"])
def test_the_entry_need_not_lie_in_executable_memory(where: str, backend: str) -> None:
    """KVM runs what is there, as solo5-hvt does. The sandbox starts the guest, which then has no right to
    execute that page."""
    guest = Bare()
    halt = guest.structure("<Qi4x", 0, 9)
    code = b"\xb8" + struct.pack("<I", halt.gpa) + bytes.fromhex("ba08050000 ef")
    flags = {"constants": PF_R, "data": PF_R | PF_W, "heap": 0}[where]
    more = [Segment(data=code, flags=flags, vaddr=PLACE)] if flags else []
    entry = PLACE if flags else HEAP
    elf = build_elf(segments=[*guest.segments()[1:], *more], notes=guest.notes(), e_entry=entry)
    result = guest.run(elf).result
    if backend == "sandbox":
        assert (result.reason, result.status) == (ExitReason.TRANSLATION_FAULT, 1)
        assert result.message == f"sandbox: host/guest translation fault: rip={entry:#x}"
    elif where == "heap":  # zeros: add %al, (%rax), which is address 0
        assert (result.reason, result.status) == (ExitReason.UNHANDLED_EXIT, 1)
    else:
        assert (result.reason, result.status) == (ExitReason.EXIT, 9)


@backends
@pytest.mark.parametrize("mem_mib", [2, 4096])
def test_memory_smaller_or_larger_than_the_image_was_checked_with(mem_mib: int) -> None:
    """One image serves every size that it fits: the last page of the smallest memory has the same content
    in the largest."""
    boots(with_segments(Segment(data=b"x", vaddr=2 * MIB - PAGE)), mem_mib)
