"""Reads the ring of a guest's last hypercalls, from outside: bindings/core/trace.h has the format.

Recording is switched on by words in the memory of the guest's process, which whoever may write there may set. The guest is
never stopped. In the sandbox the guest can write the ring and the words too: what is read here is text for people, each read
is bounded by the ring, and the guest can at most mislead, or switch the recording off (a reader switches it on again).
"""

import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tender.debug import ptrace
from tender.debug.find import Guest
from tender.debug.kvm_memory import out_of_gate
from tender.debug.symbols import Symbols
from tender.debug.target import DebugError
from tender.debug.unwind import RIP, RSP
from tender.errors import ImageError
from tender.native import ffi, lib
from tender.printable import printable

RECORD = struct.Struct("<QQQIIQ48s104s")
LAST = 256
"""How many of the last calls a core has. A report shows the end of them."""

_HAS_ARGS, _EXIT, _UNFINISHED, _HAS_STACK = 1, 2, 4, 8
_TICKS_BITS = 48
_TICKS = (1 << _TICKS_BITS) - 1
_RECORDS_MAX = 1 << 16
_FORGED = 1 << 48
_HZ_MIN, _HZ_MAX, _HZ_UNKNOWN = 10**6, 10**11, 10**9
_NS = 10**9
_TEXT_MAX = 32
_GRANT = 1 << 22
"""How many more calls are recorded after the last look: the whole harm that a tracer does that is killed."""
_REGISTERS_OFF, _ALWAYS = 128, (1 << 64) - 1
_CALLERS_MAX = 3
_KNOWN_MAX = 4096
POLL_S = 0.004
"""How long a reader waits between two looks."""

RESULTS = {0: "OK", 1: "AGAIN", 2: "EINVAL", 3: "EUNSPEC"}

# The members of each call's structure, as in tender_abi.h: (kind of device, format, arguments, results).
_CALLS: dict[str, tuple[str, struct.Struct, tuple[str, ...], tuple[str, ...]]] = {
    name: (kind, struct.Struct(form), taken, given)
    for name, kind, form, taken, given in (
        ("walltime", "clock", "<Q", (), ("nsecs",)),
        ("puts", "console", "<QQ", ("data", "len"), ()),
        ("poll", "poll", "<QQi", ("timeout_nsecs",), ("ready_set", "ret")),
        ("block_write", "block", "<QQQQi", ("handle", "offset", "data", "len"), ("ret",)),
        ("block_read", "block", "<QQQQi", ("handle", "offset", "data", "len"), ("ret",)),
        ("net_write", "net", "<QQQi", ("handle", "data", "len"), ("ret",)),
        ("net_read", "net", "<QQQi", ("handle", "data", "len"), ("ret",)),
        ("halt", "halt", "<Qi", ("cookie", "exit_status"), ()),
        ("block_batch", "block", "<QIIi", ("requests", "count"), ("done", "ret")),
        (
            "net_batch",
            "net",
            "<QQIIIIQi",
            ("handle", "frames", "tx_count", "rx_count"),
            ("tx_done", "rx_done", "timeout_ns", "ret"),
        ),
    )
}
CALLS = {name: row[0] for name, row in _CALLS.items()}
"""The kind of each hypercall, for filters."""

_NUMBERS = {
    number: ffi.string(name).decode()
    for number in range(32)
    if (name := lib.tn_hypercall_name(number)) != ffi.NULL
}
_POINTERS = ("data", "frames", "requests", "cookie")

Read = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Hypercall:
    """A hypercall of a guest.

    Attributes:
        index: Its number in the order of the recording.
        name: Its name, or "hypercall N".
        begin_ns: When it began, in nanoseconds of CLOCK_MONOTONIC.
        duration_ns: How long it took until the answer; 0 for one that is not answered yet.
        arguments: The members of its structure that the guest has set, by name. They are missing if the guest may not
            name the structure, or if the call is not answered yet.
        results: The members that the answer has set.
        text: The beginning of what a `puts` prints.
        unfinished: Whether it was not answered when it was read.
        ended: Whether the run ended with it, or a part of the monitor outside had to do something.
        rip: The address of the guest's instruction that made the call; 0 if it is not known.
        rsp: The guest's stack pointer there.
        stack: Pieces of the stack there: pairs of an address and bytes.
    """

    index: int
    name: str
    begin_ns: int
    duration_ns: int
    arguments: dict[str, int]
    results: dict[str, int]
    text: bytes = b""
    unfinished: bool = False
    ended: bool = False
    rip: int = 0
    rsp: int = 0
    stack: tuple[tuple[int, bytes], ...] = ()

    @property
    def is_error(self) -> bool:
        """Whether the guest got EINVAL, EUNSPEC or an unknown result. OK and AGAIN are no errors, nor is any of poll."""
        return self.name != "poll" and self.results.get("ret", 0) not in (0, 1)

    def to_dict(self) -> dict[str, object]:
        """Returns what is known of it as plain data, for a core and a report; addresses are text."""
        found: dict[str, object] = {"name": self.name, "begin_ns": self.begin_ns}
        if self.unfinished:
            found["unfinished"] = True
        else:
            found["end_ns"] = self.begin_ns + self.duration_ns
        for name, value in (self.arguments | self.results).items():
            found[name] = hex(value) if name in _POINTERS else value
        if self.name == "puts" and self.arguments:
            found["text"] = printable(self.text.decode("latin-1"))
        if self.rip:
            found["rip"] = hex(self.rip)
        return found


class Clock:
    """Turns values of the time stamp counter into CLOCK_MONOTONIC."""

    def __init__(self, hz: int | None = None, ticks: int | None = None, now_ns: int | None = None) -> None:
        found = lib.tn_tsc_hz() if hz is None else hz
        self.hz = found if _HZ_MIN <= found <= _HZ_MAX else _HZ_UNKNOWN
        self._ticks = lib.tn_tsc() if ticks is None else ticks
        self._now_ns = time.monotonic_ns() if now_ns is None else now_ns

    def at(self, ticks: int) -> int:
        """Returns the time; 0 for one before the host's start."""
        return max(0, self._now_ns - (self._ticks - ticks) * _NS // self.hz)

    def length(self, ticks: int) -> int:
        """Returns the time that so many ticks take."""
        return ticks * _NS // self.hz


class Ring:
    """The ring of one guest.

    Attributes:
        records: How many records it holds.
        lost: How many calls were overwritten before they were read.
        gaps: How often the recording was found off that should have been on.
    """

    def __init__(self, guest: Guest) -> None:
        self._guest, self._pid, self.lost, self.gaps = guest, guest.pid, 0, 0
        records = guest.note.get("trace_records", 0)
        if not (0 < records <= _RECORDS_MAX and not records & records - 1):
            raise DebugError(f"process {guest.pid}: its version of Tender records no hypercalls")
        self.records, self._clock = records, Clock()
        self._next = self.head()
        self._limit, self._wanted = 0, False

    def head(self) -> int:
        """Returns how many calls have been recorded."""
        return self._word("shared_trace_head")

    def is_on(self) -> bool:
        """Returns whether calls are recorded now."""
        return bool(self._word("shared_trace_on", 4))

    def is_kept_on(self) -> bool:
        """Returns whether the flight recorder keeps the recording on."""
        return self._word("shared_trace_limit") == _ALWAYS

    def switch_on(self) -> None:
        """Switches the recording on, until `switch_off` or some million calls after the last `take`.

        Raises DebugError: the process is gone, or is not ours to change.
        """
        self._wanted = not self.is_kept_on()
        if self._wanted:
            self._grant(
                max(self.head() + _GRANT, self._word("shared_trace_limit") + 1)
            )  # so that it is this reader's
            self._put("shared_registers_until", _ALWAYS)
            self._put("shared_trace_on", 1, 4)

    def switch_off(self) -> None:
        """Switches the recording off, unless somebody else wants it. Raises DebugError: the process is gone."""
        self._wanted = False
        if self._limit and self._word("shared_trace_limit") == self._limit:
            self._put("shared_trace_on", 0, 4)
            self._put("shared_registers_until", _REGISTERS_OFF)

    def _grant(self, limit: int) -> None:
        self._limit = min(limit, _ALWAYS - 1)
        self._put("shared_trace_limit", self._limit)

    def take(self) -> list[Hypercall]:
        """Returns the calls since the last time, at most those that the ring holds, and counts what was lost.

        If the recording was switched on by this reader, it stays on. Raises DebugError: the process is gone.
        """
        head = self.head()
        if head < self._next:  # the VM runs another guest, or a guest has forged it
            self._next = max(0, head - self.records)
        calls: list[Hypercall] = []
        if head - self._next < _FORGED:
            calls = self.between(max(self._next, head - self.records), head)
            self.lost += head - self._next - len(calls)
        self._next = head
        if self._wanted:
            if self._word("shared_trace_limit") < head + _GRANT // 2:
                self._grant(head + _GRANT)
            if not self.is_on():
                self.gaps += 1
                self.switch_on()
        return calls

    def last(self, count: int) -> list[Hypercall]:
        """Returns the last calls that were recorded, oldest first, and the one that is not answered yet."""
        head = self.head()
        return [*self.between(max(0, head - min(count, self.records)), head), *self.unfinished()]

    def between(self, first: int, head: int) -> list[Hypercall]:
        """Returns these calls but those that were overwritten while they were read."""
        data = self._records(first, head)
        # The record of the call that is being handled takes the place of the oldest one.
        oldest = self.head() + 1 - self.records
        whole = len(data) // RECORD.size * RECORD.size
        return [
            decode(record, self._clock)
            for index, record in enumerate(RECORD.iter_unpack(data[:whole]), first)
            if index >= oldest and record[2] == index
        ]

    def unfinished(self) -> list[Hypercall]:
        """Returns the call that is not answered yet, if there is one."""
        head = self.head()
        data = self._records(head, head + 1)
        if len(data) < RECORD.size:
            return []
        record = RECORD.unpack(data)
        return [decode(record, self._clock)] if record[2] == head and record[1] >> 56 & _UNFINISHED else []

    def _records(self, first: int, head: int) -> bytes:
        """Returns the bytes of these records, at most a ring of them."""
        at = self._place()
        data = bytearray()
        while at and first < head:
            slot = first % self.records
            count = min(head - first, self.records - slot)
            piece = ptrace.read_memory(self._pid, at + slot * RECORD.size, count * RECORD.size)
            data += piece
            if len(piece) < count * RECORD.size:
                break
            first += count
        return bytes(data)

    def _place(self) -> int:
        """Returns where the ring lies; 0 if it is not there yet."""
        guest = self._guest
        if guest.backend == "sandbox":
            return guest.shared_hva + guest.note.get("trace", 0)
        return self._at(guest.values.get("vm", 0) + guest.note.get("vm_trace", 0))

    def _address(self, name: str) -> int:
        return self._guest.shared_hva + self._guest.note.get(name, 0)

    def _word(self, name: str, length: int = 8) -> int:
        return self._at(self._address(name), length)

    def _put(self, name: str, value: int, length: int = 8) -> None:
        ptrace.write_memory(self._pid, self._address(name), value.to_bytes(length, "little"))

    def _at(self, address: int, length: int = 8) -> int:
        data = ptrace.read_memory(self._pid, address, length)
        return int.from_bytes(data, "little") if len(data) == length else 0


def lives(pid: int) -> bool:
    """Whether a process still runs."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (OSError, IndexError):
        return False


def recorded(guest: Guest) -> Sequence[dict[str, object]]:
    """Returns the last calls of a guest, oldest first, as plain data; none if they were never recorded."""
    with suppress(DebugError):
        return [call.to_dict() for call in Ring(guest).last(LAST)]
    return []


def decode(record: tuple[Any, ...], clock: Clock) -> Hypercall:
    """Returns the call that a record of any content stands for."""
    begin, about, index, rip, gpa, rsp, args, words = record
    number, flags = about >> _TICKS_BITS & 0xFF, about >> 56
    name = _NUMBERS.get(number, f"hypercall {number}")
    arguments: dict[str, int] = {}
    results: dict[str, int] = {}
    text, bytes_of_call = b"", 0
    if name in _CALLS:
        _, form, taken, given = _CALLS[name]
        bytes_of_call = form.size
        if flags & _HAS_ARGS:
            values = form.unpack_from(args)
            arguments = dict(zip(taken, values, strict=False))
            results = dict(zip(given, values[len(taken) :], strict=True))
            if name == "puts":
                text = args[16 : 16 + min(arguments["len"], _TEXT_MAX)]
    stack: tuple[tuple[int, bytes], ...] = ()
    if flags & _HAS_STACK:  # copy_stack() of bindings/core/trace.c
        capacity = len(words)
        first = gpa - rsp & -8 if 0 <= gpa - rsp < capacity else capacity
        behind = gpa + (bytes_of_call + 7 & -8) + 7 & -8
        stack = (rsp, words[:first]), (behind, words[first:])
    return Hypercall(
        index,
        name,
        clock.at(begin),
        0 if flags & _UNFINISHED else clock.length(about & _TICKS),
        arguments,
        results,
        text,
        bool(flags & _UNFINISHED),
        bool(flags & _EXIT),
        rip,
        rsp,
        stack,
    )


# ---- who called


class Callers:
    """The functions that made calls, by the symbols and the unwind tables of the guest's image."""

    def __init__(self, image: str) -> None:
        self._symbols: Symbols | None = None
        self._known: dict[tuple[int, int, tuple[tuple[int, bytes], ...]], tuple[str, ...]] = {}
        with suppress(ImageError, OSError):
            self._symbols = Symbols.open(image) if image else None

    def close(self) -> None:
        """Closes the image."""
        if self._symbols is not None:
            self._symbols.close()

    def of(self, call: Hypercall) -> tuple[str, ...]:
        """Returns the names of the function that made the call and of its callers, as far as they are known."""
        if not call.rip or self._symbols is None:
            return ()
        key = (call.rip, call.rsp, call.stack)
        names = self._known.get(key)
        if names is None:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            names = self._known[key] = tuple(self._names(self._symbols, call))
        return names

    def _names(self, symbols: Symbols, call: Hypercall) -> Iterator[str]:
        def read(address: int, length: int) -> bytes:
            for start, words in call.stack:
                at = address - start
                if at >= 0 and at + length <= len(words):
                    return words[at : at + length]
            return b""

        rip, rsp = out_of_gate(call.rip, call.rsp, read)
        registers: dict[int, int] | None = {RIP: rip, RSP: rsp}
        is_return = rip != call.rip
        for _ in range(_CALLERS_MAX):
            symbol = symbols.at(registers[RIP] - is_return) if registers else None
            if symbol is None or registers is None:
                return
            yield printable(symbol.shown)
            registers, is_return = symbols.caller(registers, read, is_return=is_return), True


# ---- for people


def line(call: Hypercall, devices: dict[int, str]) -> str:
    """Returns the call in the look of strace; `devices` has the devices' names by handle."""
    shown = []
    for name, value in call.arguments.items():
        if name == "handle":
            shown.append(devices.get(value, f"device {value}"))
        elif name == "data" and call.name == "puts":
            more = "..." if call.arguments["len"] > len(call.text) else ""
            shown.append(f'"{printable(call.text.decode("latin-1"))}"{more}')
        elif name in _POINTERS:
            shown.append(hex(value) if value else "NULL")
        elif name == "timeout_nsecs":
            shown.append(duration(value))
        else:
            shown.append(str(value))
    if call.unfinished:
        return f"{call.name}({', '.join(shown)} <unfinished>"
    results = dict(call.results)
    if call.name == "poll" and results:
        answer = f" = {results['ret']}, ready {results['ready_set']:#x}"
    elif call.name == "walltime" and results:
        answer = f" = {results['nsecs']}"
    elif "ret" in results:
        ret = results.pop("ret")
        word = f" {RESULTS[ret]}" if ret in RESULTS and ret else ""
        answer = f" = {ret}{word}" + "".join(f", {name} {value}" for name, value in results.items())
    else:
        answer = " = ?" if call.name == "halt" or not call.arguments else " = 0"
    return f"{call.name}({', '.join(shown)}){answer} <{duration(call.duration_ns)}>"


def duration(ns: int) -> str:
    """Returns a time for people."""
    for unit, size in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if ns >= size:
            return f"{ns / size:.1f}{unit}"
    return f"{ns}ns"
