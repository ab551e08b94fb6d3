"""Crash reports: their text, data and page, from guests that stand still, and from hostile files."""

import html.parser
import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from fake_guest import MIB, FakeGuest, guest_of_elf
from support import Guest

from tender.debug import report_html
from tender.debug.confined import Died, run_confined
from tender.debug.core import save_core
from tender.debug.registers import Registers
from tender.debug.report import Report, _fault, capture, fitted, make_report, report_of, what_lies_at
from tender.debug.report_text import text_of
from tender.debug.symbols import Symbols
from tender.debug.target import Facts, Mapping

EVIL = "</pre><script>alert(1)</script>\x1b[31m\u202e&\"'"


def report_guest(
    guest: Guest, name: str = "bug_null", function: str = "report", **facts: object
) -> FakeGuest:
    return guest_of_elf(guest(name), function, **facts)


def test_report_names_reason_fault_stack_and_source(guest: Guest) -> None:
    state = report_guest(
        guest,
        function="report",
        reason="abort",
        message="the guest aborted",
        status=255,
        arguments="attic",
        fault={"rip": 1, "cr2": 0x18, "error_code": 0},
    )
    state.known.fault["rip"] = state.state.rip  # type: ignore[index]

    text = text_of(report_of(capture(state)))

    assert text.startswith("bug_null.elf attic: the guest aborted, status 255 (sandbox backend)\n")
    assert "address 0x18 (read, not mapped): a null pointer + 24\n" in text
    assert "report+0x0 at " in text and "main.c:" in text
    assert "static __attribute__((noinline)) void report(const char *name)" in text
    assert "memory: " in text and " of 16 MiB" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("vector", "expected"),
    [
        (
            14,
            {
                "exception": "page fault (#PF)",
                "address": 0,
                "access": "read, not mapped",
                "what": "a null pointer",
            },
        ),
        (0, {"exception": "divide error (#DE)", "address": None, "what": ""}),
        (None, {"exception": "", "address": None, "access": "read, not mapped", "what": ""}),
    ],
)
def test_a_read_of_address_0_is_told_from_other_exceptions(
    guest: Guest, vector: int | None, expected: dict[str, object]
) -> None:
    state = report_guest(guest, fault={"rip": 1, "cr2": 0, "error_code": 0})

    assert _fault(state, vector, None, None) == {"rip": 1, **expected}


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (0, "a null pointer"),
        (8, "a null pointer + 8"),
        (1 << 62, "no address that the processor can use"),
        (64 * MIB, "beyond the guest's memory, which ends at 0x1000000"),
        (0x9FF000, "4096 bytes below the stack pointer: the stack has overflowed"),
        (0xA00010, "the stack: 16 bytes above the stack pointer"),
        (0x100000, "text of the image: not writable"),
        (0x200000, "read-only data of the image"),
        (0x500000, "memory that is not mapped"),
        (0x400000, "the heap or a stack: memory behind the image"),
    ],
)
def test_what_lies_at_an_address(address: int, expected: str) -> None:
    mappings = [
        Mapping(0x100000, 0x200000, 5),
        Mapping(0x200000, 0x300000, 4),
        Mapping(0x400000, 0x480000, 6),
        Mapping(0xA00000, 16 * MIB, 6),
    ]
    rsp = 0xA00000 if address > 0x600000 else 0x480000
    assert what_lies_at(address, mappings, rsp, None) == expected


def test_address_of_an_image_is_named_by_its_symbol(guest: Guest) -> None:
    symbols = Symbols.open(str(guest("bug_null")))
    state = report_guest(guest)
    main = symbols.find("main")
    assert main is not None

    said = what_lies_at(main.address + 1, state.mappings(), 16 * MIB, symbols)

    assert said == "main+0x1, text of the image: not writable"


def pages_of(runs: Sequence[tuple[int, int]]) -> list[int]:
    return [at for start, end in runs for at in range(start, end, 4096)]


def test_memory_that_is_copied_reads_as_the_guests(guest: Guest) -> None:
    state = report_guest(guest)

    for limit in (64 * MIB, 3 * 4096, 0):
        copied = capture(state, limit)
        assert copied.registers() == state.registers()
        shown = set(pages_of(copied.touched()))
        is_zero = {at: not any(state.read(at, 4096)) for at in pages_of(state.touched())}
        assert {at for at, zero in is_zero.items() if not zero} <= shown <= set(is_zero)
        assert limit != 64 * MIB or not any(is_zero[at] for at in shown)  # what holds zeros is not counted
        assert len(copied.read(0x100000 - 1, 4096)) == len(state.read(0x100000 - 1, 4096))
        for at in (0x100000, 0x101000, 0x104000, 8 * MIB, 16 * MIB - 4096):
            known = copied.read(at, 9000)
            assert state.read(at, 9000)[: len(known)] == known  # what was not copied is not said to be zeros
            assert limit != 64 * MIB or len(known) == len(state.read(at, 9000))
    copied = capture(state)
    for at in (0x100000, 0x100FF0, 16 * MIB - 100, 16 * MIB):
        assert copied.read(at, 5000) == state.read(at, 5000)


def test_report_is_the_same_from_a_core(guest: Guest, tmp_path: Path, tender_cmd: list[str]) -> None:
    state = report_guest(guest, reason="timeout", message="the time limit is over")
    core = tmp_path / "core"
    save_core(state, path=str(core))

    done = subprocess.run(
        [*tender_cmd, "report", "--json", core], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    found, expected = (
        json.loads(done.stdout),
        json.loads(json.dumps(make_report(state, str(guest("bug_null"))))),
    )
    for key in ("stack", "source", "registers", "code", "reason", "message", "arguments"):
        assert found[key] == expected[key], key
    assert (found["schema"], found["core"]) == ("tender.report/1", str(core))


HOSTILE: list[tuple[list[str], str]] = [
    (["report"], "one CORE or PID is needed"),
    (["report", "a", "b"], "one CORE or PID is needed"),
    (["report", "--no-such"], "Invalid option: `--no-such'"),
    (["report", "--html"], "--html needs a file"),
    (["report", "/no/such/core"], "No such file"),
    (["report", "/dev/zero"], "not a regular file"),
    (["report", "/etc/passwd"], "not an ELF file"),
    (["report", str(1 << 40)], "no such process"),
    (["report", "--image=/etc/passwd", "1"], "no ELF file"),
]


@pytest.mark.parametrize(("words", "expected"), HOSTILE)
def test_what_cannot_be_reported_is_one_line_and_status_1(
    tender_cmd: list[str], words: list[str], expected: str
) -> None:
    done = subprocess.run([*tender_cmd, *words], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (1, "")
    assert expected in done.stderr.split("\n")[0]
    assert "Traceback" not in done.stderr


def test_page_is_written_and_holds_all_parts(guest: Guest, tmp_path: Path, tender_cmd: list[str]) -> None:
    core, page = tmp_path / "core", tmp_path / "report.html"
    save_core(report_guest(guest, reason="abort", message="the guest aborted"), path=str(core))

    done = subprocess.run([*tender_cmd, "report", f"--html={page}", core], capture_output=True, check=False)
    lost = subprocess.run(
        [*tender_cmd, "report", f"--html={tmp_path}", core], capture_output=True, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    text = page.read_text()
    for part in (
        "the guest aborted",
        "<h2>Stack</h2>",
        "sensor_find",
        "<h2>Registers</h2>",
        "<h2>Memory</h2>",
    ):
        assert part in text
    assert (lost.returncode, lost.stderr) == (1, f"tender: report: {tmp_path}: Is a directory\n".encode())


class Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs


def evil_report(guest: Guest) -> Report:
    made = make_report(report_guest(guest), str(guest("bug_null")))

    def spoiled(it: object) -> object:
        if isinstance(it, str):
            return EVIL
        if isinstance(it, dict):
            return {key: spoiled(value) for key, value in it.items()}
        return [spoiled(value) for value in it] if isinstance(it, list) else it

    bad = spoiled(made)
    assert isinstance(bad, dict)
    return bad | {
        "hypercalls": [{"name": EVIL, EVIL: EVIL, "begin_ns": at, "end_ns": at + 5} for at in range(9)],
        "counters": {EVIL: 1},
        "devices": [{"name": EVIL, "kind": EVIL}],
        "notes": [EVIL],
    }


def test_nothing_of_the_guests_is_obeyed_by_a_browser_or_a_terminal(guest: Guest) -> None:
    report = evil_report(guest)
    made = report_html.html_of(report, memory_curve=[(0, 1), (1, 5)], stacks=[((EVIL, "b"), 3), (("a",), 1)])
    page = Page()
    page.feed(made)

    assert not page.tags & {"script", "img", "iframe", "object", "link", "form", "a"}
    assert not [
        name for name, _ in page.attributes if name.startswith("on") or name in ("href", "src", "style")
    ]
    assert "default-src 'none'" in made and "svg" in page.tags
    for text in (made, text_of(report)):
        assert "\x1b" not in text and "\u202e" not in text


def test_a_report_without_its_image_says_so(guest: Guest, tmp_path: Path) -> None:
    state = report_guest(guest)
    state.known = Facts(image=str(tmp_path / "gone.elf"), backend="kvm", mem_bytes=16 * MIB)

    report = report_of(state)

    assert report["notes"] == [f"no symbols: {tmp_path}/gone.elf: No such file or directory"]
    assert [frame["pc"] for frame in report["stack"]] == [state.state.rip]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("bytearray(4 << 30)", "needed too much memory"),
        ("time.sleep(60)", "took too long"),
        ("os.kill(os.getpid(), 11)", "ended with signal 11"),
        ("open('/dev/full', 'wb').write(b'x')", "failed"),
        ("open(PATH, 'w')", "failed"),
        ("1 / 0", "failed"),
    ],
)
def test_what_a_confined_child_does_harms_nobody(tmp_path: Path, code: str, expected: str) -> None:
    def made() -> object:
        return eval(code, {"os": os, "time": time, "PATH": str(tmp_path / "new")})

    with pytest.raises(Died, match=expected):
        run_confined(made, time_max_s=2)

    assert not (tmp_path / "new").exists()
    assert run_confined(lambda: {"a": [1, "b"]}) == {"a": [1, "b"]}


def test_a_child_that_dies_leaves_a_report_without_symbols(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(made: object) -> object:
        raise Died("took too long")

    monkeypatch.setattr("tender.debug.report.run_confined", died)

    report = report_of(report_guest(guest))

    assert report["notes"][0] == f"no symbols: the reader of {guest('bug_null')} took too long"


def test_a_source_file_is_read_only_if_it_is_a_small_regular_file(guest: Guest, tmp_path: Path) -> None:
    from tender.debug.own_code import source_of
    from tender.debug.symbols import Frame

    good = tmp_path / "a.c"
    good.write_text("one\ntwo\x1b[2J\nthree\n")
    link, fifo, binary = tmp_path / "l.c", tmp_path / "f.c", tmp_path / "b.c"
    link.symlink_to(good)
    os.mkfifo(fifo)
    binary.write_bytes(b"a\0b\n")
    big = tmp_path / "big.c"
    big.write_bytes(b"\n" * (2 << 20))

    found = source_of([Frame(pc=1, file=str(good), line=2)])

    assert found == {
        "frame": 0,
        "file": str(good),
        "line": 2,
        "lines": [[1, "one"], [2, "two\x1b[2J"], [3, "three"], [4, ""]],
    }
    for path in (link, fifo, binary, big, "/dev/zero", tmp_path, "a\0b"):
        assert source_of([Frame(pc=1, file=str(path), line=1)]) is None
    assert source_of([Frame(pc=1, file=str(good), line=900)]) is None


def test_the_stack_of_a_guest_goes_through_its_trap_handler(guest: Guest) -> None:
    """The registers are those of trap_report; the frame that trap_common has pushed names the interrupted code."""
    symbols = Symbols.open(str(guest("bug_null")))
    handler, find = symbols.find("trap_common"), symbols.find("report")
    assert handler is not None and find is not None
    frame = 0x800000
    words = [
        0x18,
        *range(15, 7, -1),
        0x55,
        7,
        6,
        2,
        1,
        3,
        0,
        14,
        0,
        find.address + 2,
        8,
        0x10006,
        0x900000,
        16,
    ]
    stack = {frame + 8 * n: word for n, word in enumerate(words)}
    call = next(
        at
        for at in range(handler.address, handler.address + handler.size)
        if symbols.elf.text(at, 2) == b"\x0f\x0b"
    )

    interrupted = symbols.interrupted(
        Registers(rip=call, rbx=frame, rsp=frame - 8),
        lambda address, length: stack.get(address, 0).to_bytes(8, "little")[:length],
    )

    assert interrupted is not None
    assert (interrupted.rip, interrupted.rsp, interrupted.rbx) == (find.address + 2, 0x900000, 3)
    assert [getattr(interrupted, f"r{n}") for n in range(8, 16)] == list(range(8, 16))


def test_a_report_for_a_line_loses_its_longest_parts_first() -> None:
    report: Report = {"reason": "abort", "memory": ["m" * 1000], "source": ["s" * 10], "notes": []}
    report |= {it: [] for it in ("vcpu_stack", "stack", "hypercalls", "devices", "timeline", "counters")}
    assert fitted(report, 10_000) == report
    small = fitted(report, 1000)
    assert (small["memory"], small["source"]) == ([], ["s" * 10])
    assert small["notes"] == ["memory: left out, because the line would be too long"]
    assert report["memory"] and report["notes"] == []
