"""The values that a run returns: equal, hashable, picklable, ready for JSON. Also, how a fault is explained
to a person."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from elf_builder import abi_note, build_elf, good_segments, manifest_note
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Guest

from tender.annotations import Backend
from tender.cli import explain
from tender.cli.symbols import read_details, symbol_at
from tender.result import BootTimeline, Counters, ExitReason, GuestFault, VmResult

FAULT = GuestFault(rip=0x100012, instruction="0f 01 c1", registers={"rax": 1, "cr2": (1 << 64) - 1})


def result(fault: GuestFault | None) -> VmResult:
    counts: dict[str, Any] = dict.fromkeys(Counters.__slots__, 1)
    counts["hypercalls"] = {"puts": 2}
    return VmResult(
        reason=ExitReason.UNSUPPORTED_INSTRUCTION,
        status=1,
        guest_status=None,
        message="m",
        trap=None,
        console=b"\xff",
        counters=Counters(**counts),
        boot=BootTimeline(**dict.fromkeys(BootTimeline.__slots__, 5)),
        backend=Backend.SANDBOX,
        fault=fault,
    )


def test_a_fault_and_a_result_with_one_are_values() -> None:
    for value in (FAULT, result(FAULT), result(None)):
        copied = pickle.loads(pickle.dumps(value))
        assert copied == value
        assert hash(copied) == hash(value)
        assert repr(copied) == repr(value)
        with pytest.raises(AttributeError, match="immutable"):
            value.rip = 1
    assert GuestFault(rip=1, instruction="", registers={}) != FAULT
    assert result(FAULT) != result(None)


def test_a_result_is_ready_for_json() -> None:
    plain = json.loads(json.dumps(result(FAULT).to_dict()))
    assert plain["fault"] == {"rip": 0x100012, "instruction": "0f 01 c1", "registers": FAULT.registers}
    assert plain["backend"] == "sandbox"
    assert json.loads(json.dumps(result(None).to_dict()))["fault"] is None


def test_a_fault_shows_bytes_and_registers() -> None:
    registers = {f"r{i}": i for i in range(8, 16)}
    hint = explain.fault_hint(GuestFault(rip=0x100002, instruction="f4", registers=registers))
    assert hint.split("\n") == [
        "rip 0x100002; bytes there: f4; its function: tender inspect --at=0x100002 IMAGE",
        "r8 0x8  r9 0x9  r10 0xa  r11 0xb  r12 0xc  r13 0xd",
        "r14 0xe  r15 0xf",
    ]
    nowhere = GuestFault(rip=1 << 63, instruction="", registers={})
    (line,) = explain.fault_hint(nowhere).split("\n")
    assert line.startswith("rip 0x8000000000000000; bytes there: none; its function: ")


def test_an_address_is_named_by_its_symbol(guest: Guest) -> None:
    path = str(guest("hello"))
    main = next(symbol for symbol in read_details(path).functions if symbol.name == "main")
    assert symbol_at(path, main.address) == "main+0x0"
    assert symbol_at(path, main.address + main.size - 1) == f"main+{main.size - 1:#x}"
    assert symbol_at(path, 0) == ""
    assert symbol_at(path, (1 << 64) - 1) == ""


def with_symbols(names: bytes, *, entry_bytes: int = 24) -> bytes:
    """Returns an image whose section headers describe one symbol of 16 bytes at 0x100000, with that name."""
    elf = bytearray(build_elf(segments=good_segments(), notes=[abi_note(), manifest_note()]))
    table = bytes(24) + (1).to_bytes(4, "little") + bytes([2, 0, 1, 0]) + (0x100000).to_bytes(8, "little")
    table += (16).to_bytes(8, "little")
    strings = b"\0" + names + b"\0"
    at = len(elf)

    def header(kind: int, offset: int, size: int, link: int, entry: int) -> bytes:
        words = [0, 0, offset, size]
        return (
            (0).to_bytes(4, "little") + kind.to_bytes(4, "little")
            + b"".join(word.to_bytes(8, "little") for word in words)
            + link.to_bytes(4, "little") + bytes(4) + (1).to_bytes(8, "little") + entry.to_bytes(8, "little")
        )  # fmt: skip

    headers = (
        bytes(64) + header(2, at, len(table), 2, entry_bytes) + header(3, at + len(table), len(strings), 0, 0)
    )
    start = at + len(table) + len(strings)
    elf[40:48] = start.to_bytes(8, "little")  # e_shoff
    elf[58:64] = (64).to_bytes(2, "little") + (3).to_bytes(2, "little") + (2).to_bytes(2, "little")
    return bytes(elf) + table + strings + headers


def test_a_hostile_symbol_name_is_escaped_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "app.elf"
    path.write_bytes(with_symbols(b"plain"))
    assert symbol_at(str(path), 0x100003) == "plain+0x3"
    path.write_bytes(with_symbols(b"\x1b]0;owned\x07\nx"))
    assert symbol_at(str(path), 0x100000) == "\\x1b]0;owned\\x07\\x0ax+0x0"
    path.write_bytes(with_symbols(b"n" * 100_000))
    assert len(symbol_at(str(path), 0x100000)) < 200


def test_a_symbol_table_with_entries_of_size_0_gives_no_name(tmp_path: Path) -> None:
    path = tmp_path / "app.elf"
    path.write_bytes(with_symbols(b"plain", entry_bytes=0))
    assert symbol_at(str(path), 0x100000) == ""


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=12), st.integers(0, 700))
def test_a_broken_file_only_costs_the_name(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], cut: int
) -> None:
    """Changes are counted from the end of the file, where the tables are, and in its header."""
    data = bytearray(with_symbols(b"plain"))
    for at, value in changes:
        data[at if at < 64 else len(data) - at % len(data) - 1] = value
    path = tmp_path_factory.getbasetemp() / "broken.elf"
    path.write_bytes(data[: len(data) - cut] if cut % 3 == 0 else data)
    assert isinstance(symbol_at(str(path), 0x100000), str)


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"\x7fELF" + bytes(60), bytes(1000), b"#!/bin/sh\n"])
def test_garbage_has_no_symbols(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    assert symbol_at(str(path), 0) == ""
    assert symbol_at(str(tmp_path), 0) == ""


def test_counters_have_the_order_of_the_c_structure() -> None:
    """They are all read in one step, as 64-bit words."""
    from tender.native import ffi
    from tender.outcome import COUNTED

    words = []
    for name, field in ffi.typeof("struct vm_counters").fields:
        words += [""] * field.type.length if field.type.kind == "array" else [name]
    assert tuple(words) == COUNTED
    assert ffi.sizeof("struct vm_counters") == 8 * len(words)
    timeline = [name for name, _ in ffi.typeof("struct vm_timeline").fields]
    assert timeline == ["first_run", "first_exit", "first_console", "guest_exit"]
