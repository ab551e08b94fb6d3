"""A file's symbol tables and notes are read within limits of time and memory, whatever they contain."""

import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from elf_builder import good_elf

from tender.cli import symbols

SECTION = struct.Struct("<IIQQQQIIQQ")
SYMBOL = struct.Struct("<IBBHQQ")
SYMTAB, STRTAB, NOTES, DYNSYM = 2, 3, 7, 11
FUNC = 0x12
DEADLINE_S = 60
MEMORY = 1 << 30


def section(kind: int, offset: int, size: int, link: int = 0) -> bytes:
    return SECTION.pack(1, kind, 0, 0, offset, size, link, 0, 8, 24)


def write(path: Path, sections: list[bytes], body: bytes = b"", *, size: int = 0) -> Path:
    """Writes a valid unikernel with these section headers; `body` is at 0x10000, and the file has `size`
    bytes."""
    data = bytearray(good_elf(code=b"\xf4"))
    data += bytes(-len(data) % 16)
    struct.pack_into("<Q", data, 40, len(data))
    struct.pack_into("<HHH", data, 58, 64, len(sections), 0)
    data += b"".join(sections)
    with path.open("wb") as file:
        file.write(data)
        if body:
            assert len(data) <= 0x10000 or len(sections) > 1000
            file.seek(max(0x10000, 0))
            file.write(body)
        if size:
            file.truncate(size)
    return path


def endless(kind: int) -> list[bytes]:
    """Returns a table of 2^36 entries in a hole of the file."""
    return [section(kind, 0x10000, (1 << 36) * SYMBOL.size, 1), section(STRTAB, 0x10000, 1 << 40)]


def same_long_name() -> bytes:
    """Returns 262144 functions that all share one name of 8 KiB, which is in the file only once."""
    return SYMBOL.pack(0, FUNC, 0, 1, 0x100000, 16) * symbols.SYMBOLS_MAX + b"n" * 8192


HOSTILE = {
    "symbols without end": (endless(SYMTAB), b"", 1 << 42),
    "dynamic symbols without end": (endless(DYNSYM), b"", 1 << 42),
    "many tables without end": (endless(SYMTAB) * 8000, b"", 1 << 42),
    "a note without end": ([section(NOTES, 0x10000, 1 << 41)] * 3, b"", 1 << 42),
    "one long name for all": (
        [
            section(SYMTAB, 0x10000, symbols.SYMBOLS_MAX * SYMBOL.size, 1),
            section(STRTAB, 0x10000 + symbols.SYMBOLS_MAX * SYMBOL.size, 1 << 40),
        ],
        same_long_name(),
        0,
    ),
    "sections at the end of 64 bits": ([section(SYMTAB, (1 << 64) - 24, (1 << 64) - 1, 0xFFFFFFFF)], b"", 0),
    "a build id of 4 GiB": (
        [section(NOTES, 0x10000, 1 << 33)],
        struct.pack("<III", 4, 0xFFFFFFFF, 3) + b"GNU\0",
        1 << 34,
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize(
    "words", [("inspect",), ("inspect", "--json", "--symbols"), ("inspect", "--at=0x100001")]
)
def test_a_hostile_table_costs_little_time_and_memory(
    kind: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    """The process has 1 GiB of address space and a deadline, and both are far above what it needs."""
    sections, body, size = HOSTILE[kind]
    image = write(tmp_path / "app.elf", sections, body, size=size)
    command = [sys.executable, "-I", "-m", "tender", *words, str(image)]
    done = subprocess.run(
        command,
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
    )
    assert done.returncode in ((0, 1) if "--at=0x100001" in words else (0,)), done.stderr[-500:]
    assert b"Traceback" not in done.stderr and b"internal error" not in done.stderr


def test_a_table_that_is_too_long_is_reported_as_incomplete(tmp_path: Path) -> None:
    details = symbols.read_details(str(write(tmp_path / "app.elf", endless(SYMTAB), size=1 << 42)))
    assert (details.symbol_count, details.complete) == (symbols.SYMBOLS_MAX, False)


def test_names_are_read_from_the_table(tmp_path: Path) -> None:
    table = SYMBOL.pack(0, 0, 0, 0, 0, 0) + SYMBOL.pack(1, FUNC, 0, 1, 0x100000, 16)
    strings = b"\0start\0"
    sections = [section(SYMTAB, 0x10000, len(table), 1), section(STRTAB, 0x10000 + len(table), len(strings))]
    path = str(write(tmp_path / "app.elf", sections, table + strings))
    assert symbols.symbol_at(path, 0x10000F) == "start+0xf"
    assert symbols.symbol_at(path, 0x100010) == ""
    details = symbols.read_details(path)
    assert (details.symbol_count, [f.name for f in details.functions], details.complete) == (
        2,
        ["start"],
        True,
    )
