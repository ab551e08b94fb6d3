"""The reader of the ring of hypercalls: any record is a call, a line and data; times; who called; the schema of the JSON."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from json_schema import problems
from support import Guest

from tender.cli.trace import as_data
from tender.debug.symbols import Symbols
from tender.debug.trace import CALLS, RECORD, Callers, Clock, Hypercall, decode, line
from tender.native import ffi

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
SCHEMA = json.loads((SCHEMAS / "trace.schema.json").read_text())
CLOCK = Clock(hz=2_000_000_000, ticks=10_000, now_ns=1_000_000)
WORD = st.integers(0, (1 << 64) - 1)
HALF = st.integers(0, (1 << 32) - 1)


def record(
    number: int, flags: int, args: bytes, *, begin: int = 8_000, ticks: int = 200, gpa: int = 0, rsp: int = 0
) -> tuple[int | bytes, ...]:
    about = ticks | number << 48 | flags << 56
    return begin, about, 7, 0x100123, gpa, rsp, args.ljust(48, b"\0"), bytes(range(104))


RECORDS = st.tuples(
    *(WORD, WORD, WORD, HALF, HALF, WORD),
    st.binary(min_size=48, max_size=48),
    st.binary(min_size=104, max_size=104),
)


@given(RECORDS)
def test_any_record_is_a_line_that_a_terminal_can_show_and_fits_the_schema(
    words: tuple[int | bytes, ...],
) -> None:
    call = decode(words, CLOCK)
    assert line(call, {}).isprintable()
    assert json.dumps(call.to_dict()).isprintable()
    assert problems(as_data(call, {}, ("main",)), SCHEMA) == []


def test_the_json_of_a_call_is_that_of_the_golden_file_and_fits_the_schema() -> None:
    words = (1).to_bytes(8, "little"), (0x11E040).to_bytes(8, "little"), (98).to_bytes(8, "little")
    sent = decode(record(6, 1, b"".join(words) + (3).to_bytes(4, "little")), CLOCK)
    text = (0x20000).to_bytes(8, "little") + (6).to_bytes(8, "little") + b"ready\n"
    said = decode(record(2, 1, text), CLOCK)
    waits = decode(record(3, 4, b""), CLOCK)
    lines: list[dict[str, object]] = [
        as_data(sent, {1: "service"}, ("net_send", "main")),
        as_data(said, {}, ()),
        as_data(waits, {}, ("poll_wait",)),
        {"schema": "tender.trace/1", "calls": 3, "lost": 0, "gaps": 0},
    ]
    golden = [json.loads(text) for text in (SCHEMAS / "trace.golden.jsonl").read_text().splitlines()]
    assert lines == golden
    assert [problems(it, SCHEMA) for it in lines] == [[]] * 4


LINES = {
    "an error": (record(6, 1, bytes(24) + b"\3"), "net_write(device 0, NULL, 0) = 3 EUNSPEC <100ns>"),
    "not answered": (record(3, 4, b""), "poll( <unfinished>"),
    "the end": (record(8, 3, bytes(8) + b"\5"), "halt(NULL, 5) = ? <100ns>"),
    "not readable": (record(6, 2, b""), "net_write() = ? <100ns>"),
    "unknown": (record(200, 0, b""), "hypercall 200() = ? <100ns>"),
}


@pytest.mark.parametrize("words, shown", LINES.values(), ids=LINES)
def test_a_call_is_shown_as_strace_shows_one(words: tuple[int | bytes, ...], shown: str) -> None:
    assert line(decode(words, CLOCK), {}) == shown


def test_times_are_those_of_the_monotonic_clock_and_none_lies_before_its_start() -> None:
    assert (CLOCK.at(10_000), CLOCK.at(8_000), CLOCK.length(2_000)) == (1_000_000, 999_000, 1_000)
    assert Clock(hz=1, ticks=1 << 63, now_ns=5).at(0) == 0  # a frequency that cannot be true


def test_the_stack_is_read_around_the_calls_structure() -> None:
    call = decode(record(6, 1 | 8, b"", gpa=0x1018, rsp=0x1000), CLOCK)
    below, behind = call.stack
    assert below == (0x1000, bytes(range(24)))
    assert behind == (0x1018 + 32, bytes(range(24, 104)))
    elsewhere = decode(record(6, 1 | 8, b"", gpa=0x9000, rsp=0x1000), CLOCK)
    assert elsewhere.stack[0] == (0x1000, bytes(range(104)))


def test_the_callers_of_a_call_are_found_by_the_image(guest: Guest) -> None:
    path = str(guest("debug"))
    symbols = Symbols.open(path)
    main = symbols.find("main")
    symbols.close()
    assert main
    callers = Callers(path)
    gate = Hypercall(
        0,
        "poll",
        0,
        0,
        {},
        {},
        rip=0xFF037,
        rsp=0x8000,
        stack=((0x8000, (main.address + 4).to_bytes(8, "little")),),
    )
    assert callers.of(gate) == ("main",)
    assert callers.of(Hypercall(0, "poll", 0, 0, {}, {})) == ()
    callers.close()
    assert Callers("/no/such/file").of(gate) == ()


def test_the_table_of_calls_has_each_hypercall() -> None:
    from tender.debug.trace import _NUMBERS

    assert set(CALLS) == set(_NUMBERS.values())
    assert RECORD.size == 192
    assert ffi.sizeof("struct vm_shared") % 8 == 0
