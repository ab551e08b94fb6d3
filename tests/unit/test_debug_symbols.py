"""Symbols, lines, inlined functions and stacks of ELF files, compared with binutils, pyelftools and broken files."""

import io
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st
from support import Guest

import tender
from tender.debug import dwarf
from tender.debug.demangle import demangle
from tender.debug.registers import Registers
from tender.debug.symbols import Frame, Symbols
from tender.debug.unwind import Broken, FrameTable, evaluate
from tender.errors import ImageError

GUESTS = ("bug_null", "debug", "net_rx_poll", "traps")
MASK = (1 << 64) - 1


def text_addresses(path: Path, step: int) -> list[int]:
    with path.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".text")
        assert section is not None
        return list(range(section["sh_addr"], section["sh_addr"] + section["sh_size"], step))


def shown(frames: Sequence[Frame]) -> list[tuple[str, str, int]]:
    return [(it.function, Path(it.file).name, it.line) for it in frames]


def by_addr2line(path: Path, addresses: list[int]) -> list[list[tuple[str, str, int]]]:
    words = ["addr2line", "-fia", "-e", str(path), *map(hex, addresses)]
    found: list[list[tuple[str, str, int]]] = []
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    at = 0
    while at < len(lines):
        if lines[at].startswith("0x"):
            found.append([])
            at += 1
            continue
        file, _, line = lines[at + 1].partition(" (")[0].rpartition(":")
        found[-1].append((lines[at], Path(file).name, int(line) if line.isdigit() else 0))
        at += 2
    return found


@pytest.mark.parametrize("name", GUESTS)
def test_functions_and_lines_are_those_of_addr2line(guest: Guest, name: str) -> None:
    symbols = Symbols.open(str(guest(name)))
    addresses = [at for at in text_addresses(guest(name), 7) if symbols.at(at)]

    found = [shown(symbols.frames(at)) for at in addresses]

    assert found == by_addr2line(guest(name), addresses)
    assert any(len(it) > 2 for it in found), "no place with two inlined functions was compared"


@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_each_version_of_dwarf_is_read(tmp_path: Path, compiler: str, version: int) -> None:
    program = shutil.which(compiler)
    if program is None:
        assert compiler == "clang", "gcc is missing"
        program = "gcc"
    source = tmp_path / "x.c"
    source.write_text(
        "volatile int v;\n"
        "static inline __attribute__((always_inline)) void one(int n) {\n    v = n;\n}\n"
        "static inline __attribute__((always_inline)) void two(int n) {\n    one(n);\n    one(n + 1);\n}\n"
        "__attribute__((noinline)) void three(int n) {\n    two(n);\n}\n"
        "int main(void) {\n    three(3);\n    return 0;\n}\n"
    )
    out = tmp_path / "x"
    subprocess.run([program, f"-gdwarf-{version}", "-O2", "-o", out, source], check=True)
    symbols = Symbols.open(str(out))
    three = symbols.find("three")
    assert three is not None and three.is_function

    found = {tuple(shown(symbols.frames(three.address + at))) for at in range(three.size)}

    outer = ("three", "x.c", 10)
    assert (("one", "x.c", 3), ("two", "x.c", 6), outer) in found
    assert (("one", "x.c", 3), ("two", "x.c", 7), outer) in found


@pytest.mark.parametrize("name", ["_native.abi3.so", "tender-sandbox"])
def test_unwind_rules_are_those_of_pyelftools(name: str) -> None:
    (path,) = Path(tender.__file__).parent.rglob(name)
    symbols = Symbols.open(str(path))
    registers = {number: 0x10000 * (number + 1) for number in range(17)}
    compared = 0
    with path.open("rb") as file:
        dwarf = ELFFile(file).get_dwarf_info(relocate_dwarf_sections=False)
        entries = [
            *(dwarf.EH_CFI_entries() if dwarf.has_EH_CFI() else ()),
            *(dwarf.CFI_entries() if dwarf.has_CFI() else ()),
        ]
        for entry in entries:
            if not isinstance(entry, FDE):
                continue
            for row in entry.get_decoded().table:
                step = symbols.step(
                    {**registers, 16: row["pc"]},
                    lambda address, length: (address & MASK).to_bytes(8, "little")[:length],
                    is_return=False,
                )
                if row["cfa"].reg is None or row["pc"] >= entry["initial_location"] + entry["address_range"]:
                    continue
                cfa = registers[row["cfa"].reg] + row["cfa"].offset
                places = {
                    number: cfa + rule.arg
                    for number, rule in row.items()
                    if isinstance(number, int) and rule.type == "OFFSET"
                }
                assert step is not None
                assert (step.cfa, {number: step.registers.get(number) for number in places}) == (cfa, places)
                compared += 1
    assert compared > 50


def test_symbols_are_found_by_name_and_address(guest: Guest) -> None:
    symbols = Symbols.open(str(guest("bug_null")))

    main = symbols.find("main")

    assert main is not None and main.is_function and main.size > 0
    assert symbols.at(main.address) == symbols.at(main.address + main.size - 1) == main
    assert symbols.find("no_such_symbol") is None
    assert symbols.at(8) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("main", "main"),
        ("camlStdlib__List.map_123", "Stdlib.List.map"),
        ("camlStdlib__List$map_123", "Stdlib.List.map"),
        ("camlStdlib$$2b$2b_9", "Stdlib.++"),
        ("camlMain__entry", "Main.entry"),
        ("camlMain.fun_12_code", "Main.fun"),
        ("camlMain.$7c$2b$3e_272", "Main.|+>"),
        ("camlShop.value_of_275", "Shop.value_of"),
        ("caml_alloc_string", "caml_alloc_string"),
        ("_ZN3foo3barEi", "foo::bar(int)"),
        ("_RNvCskwGfYPst2Cb_3foo16example_function", "foo::example_function"),
        ("_ZN4core3fmt5write17h0123456789abcdefE", "core::fmt::write"),
        ("_Z", "_Z"),
        ("_ZN" + "9" * 5000, "_ZN" + "9" * 5000),
    ],
)
def test_names_are_demangled(name: str, expected: str) -> None:
    assert demangle(name) == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (b"\x77\x08", 0x1008),  # breg7 8
        (b"\x77\x08\x06", 0x1008),  # deref; memory holds its own addresses
        (b"\x77\x00\x23\x80\x01", 0x1080),  # plus_uconst 128
        (b"\x3f\x32\x24", 15 << 2),  # lit15 lit2 shl
        (b"\x09\xff\x1f", 1),  # const1s -1, neg
        (b"\x31\x28\x01\x00\x00\x35", 5),  # lit1, bra over one byte, lit5
        (b"\x2f\xfd\xff", None),  # skip to itself for ever
        (b"\x31\x12" * 300, None),
        (b"\x06", None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_expressions_are_evaluated_and_bounded(code: bytes, expected: int | None) -> None:
    def read(address: int, length: int) -> bytes:
        return address.to_bytes(8, "little")[:length]

    if expected is None:
        with pytest.raises(Broken):
            evaluate(code, {7: 0x1000}, read)
    else:
        assert evaluate(code, {7: 0x1000}, read) == expected


def test_a_function_without_tables_is_left_by_the_call_that_led_there(tmp_path: Path) -> None:
    """Assembly without call frame information keeps a return address under what it has pushed."""
    source = tmp_path / "x.S"
    source.write_text(
        ".globl _start, outer, inner\n.text\n"
        "_start: call outer\nhlt\n.size _start, .-_start\n"
        "other: call other\nstale: nop\n.size other, 5\n"
        "outer: push %rax\nafter: call inner\nback: pop %rax\nret\n.size outer, .-outer\n"
        "inner: push %rbx\npush %rcx\nhere: nop\nret\n.size inner, .-inner\n"
    )
    out = tmp_path / "x"
    subprocess.run(["gcc", "-nostdlib", "-static", "-o", out, source], check=True)
    symbols = Symbols.open(str(out))
    places = {
        name: found.address for name in ("here", "stale", "back", "_start") if (found := symbols.find(name))
    }
    words = [1, places["stale"], places["back"], 0, places["_start"] + 5]
    stack = b"".join(word.to_bytes(8, "little") for word in words)

    stack_found = symbols.backtrace(
        Registers(rip=places["here"], rsp=0x8000),
        lambda address, length: stack[address - 0x8000 :][:length] if address >= 0x8000 else b"",
    )

    assert [it.pc for it in stack_found] == [places["here"], places["back"], places["_start"] + 5]
    assert [it.function for it in stack_found] == ["inner", "outer", "_start"] or stack_found[
        0
    ].function == "here"
    assert [it.certain for it in stack_found] == [True, False, False]


def test_a_runtime_that_changes_stacks_is_left_like_a_call_and_an_exception_is_told_apart(
    tmp_path: Path,
) -> None:
    """OCaml 5 runs C code on another stack. Its tables find the stack of OCaml by a word that the runtime has pushed, and
    call this a signal frame, as those of a handler of exceptions do."""
    source = tmp_path / "x.S"
    source.write_text(
        ".globl _start, caml_c_call, callee\n.text\n"
        "_start: .cfi_startproc\n.cfi_undefined rip\ncall camlMain.work_7\nouter: hlt\n.cfi_endproc\n"
        "camlMain.work_7: .cfi_startproc\nsub $8, %rsp\n.cfi_adjust_cfa_offset 8\ncall caml_c_call\nwork: ud2\n"
        ".cfi_endproc\n"
        "caml_c_call: .cfi_startproc\n.cfi_signal_frame\n"
        ".cfi_escape 0x0f, 5, 0x77, 8, 0x06, 0x23, 8\n"  # the CFA: breg7 8, deref, plus_uconst 8
        "call callee\nswitched: ud2\n.cfi_endproc\n"
        "callee: .cfi_startproc\nhere: ud2\n.cfi_endproc\n"
        "handler: .cfi_startproc simple\n.cfi_signal_frame\n.cfi_def_cfa rsp, 40\n"
        ".cfi_offset rip, -40\n.cfi_offset rsp, -16\nud2\n.cfi_endproc\n"
    )
    out = tmp_path / "x"
    subprocess.run(["gcc", "-nostdlib", "-static", "-o", out, source], check=True)
    symbols = Symbols.open(str(out))
    places = {
        it: found.address
        for it in ("outer", "work", "switched", "here", "handler")
        if (found := symbols.find(it))
    }
    memory = {
        0x8000: places["switched"],  # the stack of C
        0x8010: 0x20000,
        0x20000: places["work"],  # the stack of OCaml
        0x20010: places["outer"],
        0x9000: places["here"],  # what an exception has pushed
        0x9018: 0x8000,
    }

    def read(address: int, length: int) -> bytes:
        return memory.get(address, 0).to_bytes(8, "little")[:length]

    stack = [places[it] for it in ("here", "switched", "work", "outer")]
    in_c, in_handler = Registers(rip=places["here"], rsp=0x8000), Registers(rip=places["handler"], rsp=0x9000)
    frames = symbols.backtrace(in_c, read)
    assert [(it.pc, it.certain) for it in frames] == [(it, True) for it in stack]
    assert frames[2].function in ("work", "Main.work")
    assert symbols.interrupted(in_c, read) is None
    assert [it.pc for it in symbols.backtrace(in_handler, read)] == [places["handler"], *stack]
    assert symbols.interrupted(in_handler, read) == in_c


def test_other_files_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    fifo = tmp_path / "fifo"
    subprocess.run(["mkfifo", fifo], check=True)

    for path in (empty, fifo, tmp_path, tmp_path / "absent", Path("/dev/zero"), Path(__file__)):
        with pytest.raises(ImageError, match=r"regular file|ELF file|No such file"):
            Symbols.open(str(path))
    with pytest.raises(ImageError):
        Symbols.open("zero\0byte")


@pytest.fixture(scope="session")
def small_elf(guest: Guest) -> bytes:
    return guest("bug_null").read_bytes()


def places_to_break(data: bytes) -> list[tuple[int, int]]:
    """The parts of the file that this code reads: headers, tables, debug sections."""
    elf = ELFFile(io.BytesIO(data))
    found = [(0, 64), (elf["e_shoff"], elf["e_shnum"] * 64), (elf["e_phoff"], elf["e_phnum"] * 56)]
    for section in elf.iter_sections():
        if section.name.startswith((".debug", ".eh_frame", ".symtab", ".strtab")) and section["sh_size"]:
            found.append((section["sh_offset"], section["sh_size"]))
    return found


@given(
    draws=st.lists(
        st.tuples(st.integers(0, 63), st.integers(0, 1 << 20), st.binary(min_size=1, max_size=9)), max_size=12
    )
)
def test_a_broken_file_gives_fewer_facts_and_no_error(
    small_elf: bytes, tmp_path_factory: pytest.TempPathFactory, draws: list[tuple[int, int, bytes]]
) -> None:
    data = bytearray(small_elf)
    places = places_to_break(small_elf)
    for which, at, new in draws:
        start, size = places[which % len(places)]
        begin = start + at % size
        data[begin : begin + len(new)] = new[: len(data) - begin]
    path = tmp_path_factory.mktemp("broken") / "x.elf"
    path.write_bytes(data)
    try:
        symbols = Symbols.open(str(path))
    except ImageError:
        return
    for pc in (0x100000, 0x101004, 0x1010F0, 0x102225, MASK, 0):
        registers = Registers(rip=pc, rsp=0x200000, rbp=0x200010)
        frames = symbols.backtrace(
            registers, lambda address, length: (address & MASK).to_bytes(8, "little") * (length // 8)
        )
        assert 1 <= len(frames) <= 65 * 64
        assert all("\x1b" not in it.function + it.file for it in frames)
        symbols.at(pc)
    symbols.find("main")
    path.unlink()


def evil_ranges(count: int) -> dict[str, bytes]:
    """Each unit names the same long list, in which nothing is found."""
    unit = struct.pack("<HIB", 4, 0, 8) + b"\1" + struct.pack("<I", 0)
    info = (struct.pack("<I", len(unit)) + unit) * count
    abbreviations = b"\1\x11\0\x55\x17\0\0\0"  # compile_unit: ranges as sec_offset
    return {"info": info, "abbrev": abbreviations, "ranges": struct.pack("<QQ", 2, 1) * 200_000}


def evil_functions(count: int) -> dict[str, bytes]:
    """Each function of a unit has the same long list of ranges."""
    root, function = b"\1" + struct.pack("<QQ", 0x100000, 1 << 30), b"\2" + struct.pack("<I", 0)
    unit = struct.pack("<HIB", 4, 0, 8) + root + function * count
    abbreviations = b"\1\x11\1\x11\1\x12\7\0\0\2\x2e\0\x55\x17\0\0\0"
    ranges = struct.pack("<QQ", 1, 1 << 30) * 200_000
    return {"info": struct.pack("<I", len(unit)) + unit, "abbrev": abbreviations, "ranges": ranges}


def evil_abbreviations(count: int) -> dict[str, bytes]:
    """Each unit has a table of its own, which begins one byte later."""
    heads = (struct.pack("<HIB", 4, number, 8) + b"\1" for number in range(count))
    info = b"".join(struct.pack("<I", len(unit)) + unit for unit in heads)
    return {"info": info, "abbrev": b"\1\1\0\1\1\0\0" * (count // 7)}


def evil_lines(count: int) -> dict[str, bytes]:
    """A program of instructions without effect, and one of rows."""
    root = b"\1" + struct.pack("<QQI", 0x100000, 1 << 30, 0)
    unit = struct.pack("<HIB", 4, 0, 8) + root
    head = struct.pack("<BBBbBB", 1, 1, 1, -5, 14, 13) + bytes(12) + b"\0\0"
    program = b"\6" * count + b"\x20" * count
    body = struct.pack("<HI", 4, len(head)) + head + program
    abbreviations = b"\1\x11\0\x11\1\x12\7\x10\x17\0\0\0"
    line = struct.pack("<I", len(body)) + body
    return {"info": struct.pack("<I", len(unit)) + unit, "abbrev": abbreviations, "line": line}


def evil_entries(count: int) -> dict[str, bytes]:
    """A unit of lists that end and never began."""
    root = b"\1" + struct.pack("<QQ", 0x100000, 1 << 30)
    unit = struct.pack("<HIB", 4, 0, 8) + root + bytes(count)
    info = struct.pack("<I", len(unit)) + unit
    return {"info": info, "abbrev": b"\1\x11\1\x11\1\x12\7\0\0\0"}


@pytest.mark.parametrize(
    ("made", "count"),
    [
        (evil_ranges, 20_000),
        (evil_functions, 5000),
        (evil_abbreviations, 90_000),
        (evil_lines, 30 << 20),
        (evil_entries, 100 << 20),
    ],
    ids=lambda it: it.__name__.removeprefix("evil_") if callable(it) else "",
)
def test_debug_information_that_never_ends_takes_a_bounded_time(
    guest: Guest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    made: Callable[[int], dict[str, bytes]],
    count: int,
) -> None:
    """Without a bound each of these takes from minutes to days, or all memory. The time grows with the bound."""
    monkeypatch.setattr("tender.debug.dwarf._WORK_MAX", dwarf._WORK_MAX // 20)
    path = tmp_path / "evil.elf"
    words = ["objcopy", "--remove-section=.debug_aranges"]
    for name, data in made(count).items():
        (tmp_path / name).write_bytes(data)
        words += [f"--remove-section=.debug_{name}", f"--add-section=.debug_{name}={tmp_path / name}"]
    subprocess.run([*words, str(guest("bug_null")), str(path)], check=True)
    symbols = Symbols.open(str(path))
    entry = symbols.find("main")
    assert entry is not None
    began = time.process_time()
    frames = symbols.backtrace(
        Registers(rip=entry.address + 4, rsp=0x200000), lambda _, length: bytes(length)
    )
    assert frames[0].function == "main"
    assert time.process_time() - began < 10


def test_unwind_instructions_that_never_end_take_a_bounded_time() -> None:
    cie = struct.pack("<IBBBBB", 0, 1, 0, 1, 0x78, 16)
    fde = struct.pack("<IQQ", len(cie) + 8, 0x1000, 0x1000) + bytes(50 << 20)
    data = struct.pack("<I", len(cie)) + cie + struct.pack("<I", len(fde)) + fde
    table = FrameTable(data, 0, is_eh=True)
    began = time.process_time()
    for _ in range(20):
        table.step({7: 0x2000, 16: 0x1004}, lambda _, length: bytes(length), is_return=False)
    assert time.process_time() - began < 30
