"""An error names a core that is built for another machine. The loader would only report that there is no
such file."""

import struct
from pathlib import Path

import pytest

from tender.platform_check import ONLY, misfit

OF = {
    "x86_64": (2, 62, "<"),
    "i386": (1, 3, "<"),
    "x32": (1, 62, "<"),
    "aarch64": (2, 183, "<"),
    "s390x": (2, 22, ">"),
}


def elf(place: Path, machine: str) -> str:
    """Makes a file that begins like an ELF file for this machine."""
    of_class, number, order = OF[machine]
    start = b"\x7fELF" + bytes([of_class, 1 if order == "<" else 2, 1]) + bytes(9)
    place.write_bytes(start + struct.pack(f"{order}HH", 3, number) + bytes(44))
    return str(place)


ROWS = {
    ("x86_64", "x86_64", "linux"): "",
    ("aarch64", "x86_64", "linux"): "its core {core} is for aarch64",
    ("s390x", "x86_64", "linux"): "its core {core} is for s390x",
    ("i386", "x86_64", "linux"): "its core {core} is for i386",
    ("x86_64", "aarch64", "linux"): "is for aarch64",
    ("x86_64", "i386", "linux"): "is for i386",
    ("x86_64", "x32", "linux"): "is for x32",
    ("x86_64", "s390x", "linux"): "is for s390x",
    ("x86_64", "x86_64", "darwin"): "this is darwin",
    ("x86_64", "x86_64", "freebsd14"): "this is freebsd14",
}


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_the_machine_that_does_not_fit_is_named(tmp_path: Path, row: tuple[str, str, str]) -> None:
    core, python = elf(tmp_path / "core.so", row[0]), elf(tmp_path / "python", row[1])
    said = misfit(core, python, row[2])
    if not ROWS[row]:
        assert said == ""
    else:
        assert said.startswith(f"{ONLY}, and ") and said.endswith(ROWS[row].format(core=core))


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"no ELF file at all, but long enough", None])
def test_a_core_that_is_not_an_elf_file_is_left_to_the_loader(tmp_path: Path, content: bytes | None) -> None:
    core = tmp_path / "core.so"
    if content is not None:
        core.write_bytes(content)
    assert misfit(str(core), elf(tmp_path / "python", "x86_64")) == ""


def test_an_unknown_machine_is_named_by_its_number(tmp_path: Path) -> None:
    core = tmp_path / "core.so"
    core.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, 0x9026))
    said = misfit(str(core), elf(tmp_path / "python", "x86_64"))
    assert said.endswith("is for machine 36902 of ELF class 2")
