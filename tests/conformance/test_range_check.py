"""Which addresses are valid, row by row: for the structure of each hypercall, and for each buffer that a
structure names.

A refused row ends the run, so each row is a boot of its own for each call. Both backends use one function
for the check. In the sandbox every call is tried with every row, at a call site and by a trap. On KVM,
where a boot is expensive, every row is tried with one call and every call with some rows. The cookie of
halt is in test_hypercalls.py, and the array of a batch in test_disk_load.py.
"""

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from bare import (
    BLOCK_READ,
    BLOCK_WRITE,
    DATA,
    HALT,
    HEAP,
    L_BLOCK,
    L_HALT,
    L_NET,
    L_POLL,
    L_PUTS,
    L_WALLTIME,
    MIB,
    NET_READ,
    NET_WRITE,
    OK,
    POLL,
    PORT,
    PUTS,
    TEXT,
    WALLTIME,
    Bare,
    Placed,
    Ran,
)
from elf_builder import PF_R, Segment, build_elf

from tender import BlockFile, ExitReason, NetFd

pytestmark = pytest.mark.backends

M = 2 * MIB
U64 = 1 << 64
CAPACITY = 1 << 16
CONSTANTS, NO_RIGHTS = 0x180000, 0x190000
"""Segments of one page each: the first is read-only, and the second has no rights at all."""
PAGE = 4096

NAMES = {
    WALLTIME: "walltime", PUTS: "puts", POLL: "poll", BLOCK_WRITE: "block_write", BLOCK_READ: "block_read",
    NET_WRITE: "net_write", NET_READ: "net_read", HALT: "halt",
}  # fmt: skip
LAYOUTS = {
    WALLTIME: L_WALLTIME, PUTS: L_PUTS, POLL: L_POLL, BLOCK_WRITE: L_BLOCK, BLOCK_READ: L_BLOCK,
    NET_WRITE: L_NET, NET_READ: L_NET, HALT: L_HALT,
}  # fmt: skip
ANSWERED = (WALLTIME, POLL, BLOCK_WRITE, BLOCK_READ, NET_WRITE, NET_READ)
"""The calls that write to their structures."""
BUFFER_READ, BUFFER_FILLED = (PUTS, BLOCK_WRITE, NET_WRITE), (BLOCK_READ, NET_READ)
"""The calls by what the host does with their buffer: it reads the buffer, or it fills it."""
NET, BLOCK = ("service0", "net"), ("storage", "block")


class Row(NamedTuple):
    number: int  # of the row; it chooses the call that is tried on KVM
    at: int
    length: int = 0


def rows(*what: tuple[str, int] | tuple[str, int, int]) -> pytest.MarkDecorator:
    """Returns a parametrisation by these rows: a name, an address, a length."""
    made = [pytest.param(Row(i, *numbers), id=name) for i, (name, *numbers) in enumerate(what)]
    return pytest.mark.parametrize("row", made)


def calls_to_try(backend: str, row: Row, calls: tuple[int, ...]) -> list[tuple[int, bool]]:
    """Returns the calls that this row is tried with, and for each whether it is made at a call site."""
    if backend == "kvm":
        return [(calls[row.number % len(calls)], True)]
    return [(call, site) for call in calls for site in (True, False)]


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A network with handle 1, where a frame of 16 bytes waits, and a disk with handle 2, whose bytes are
    all 0xD0."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"\xd0" * CAPACITY)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.send(b"\xe0" * 16)
        yield {"net": NetFd(theirs.fileno()), "block": BlockFile(str(disk))}


def run(guest: Bare, devices: dict[str, Any], *, mem: int = 2) -> Ran:
    extra = [
        Segment(data=b"\xc0" * PAGE, flags=PF_R, vaddr=CONSTANTS),
        Segment(data=b"\xc1" * PAGE, flags=0, vaddr=NO_RIGHTS),
    ]
    return guest.run(build_elf(segments=[*guest.segments(), *extra], notes=guest.notes()), mem=mem, **devices)


def refused(ran: Ran, call: int, gpa: int, length: int) -> None:
    assert (ran.result.reason, ran.result.status) == (ExitReason.BAD_ACCESS, 1), (NAMES[call], ran.result)
    assert ran.result.message.startswith(
        f"Invalid guest access: gpa={gpa:#x}, sz={length} (hypercall {NAMES[call]}, rip=0x100"
    )


def fields(call: int, data: int, length: int) -> tuple[int, ...]:
    """Returns the fields of a call's structure with this buffer. A call without a buffer gets fields that
    do not end the run."""
    if call in (BLOCK_WRITE, BLOCK_READ):
        return (2, 0, data, length, 0x7E7E7E7E)
    if call in (NET_WRITE, NET_READ):
        return (1, data, length, 0x7E7E7E7E)
    return {WALLTIME: (0,), PUTS: (data, length), POLL: (0, 9, 9), HALT: (0, 7)}[call]


# ---- structures


def structure_is_refused(backend: str, row: Row, calls: tuple[int, ...], devices: dict[str, Any]) -> None:
    """A negative `row.at` means so many bytes after the last valid address."""
    for call, site in calls_to_try(backend, row, calls):
        size = struct.calcsize(LAYOUTS[call])
        gpa = row.at if row.at >= 0 else M - size - row.at
        guest = Bare([NET, BLOCK])
        guest.out(PORT + call, gpa, site=site)
        guest.halt()
        refused(run(guest, devices), call, gpa, size)


@rows(
    ("one byte too far", -1),
    ("all but its first byte too far", M - 1),
    ("at the end of memory", M),
    ("far after the end", M + 0x1000),
    ("where 32 bits wrap", 0xFFFFFFFC),
    ("the last of 32 bits", 0xFFFFFFFF),
    ("null", 0),
    ("near null", 8),
    ("in the tables", 0x2000),
    ("half below boot info", 0xFFFC),
    ("in a segment without rights", NO_RIGHTS),
    ("the last of that segment", NO_RIGHTS + PAGE - 1),
    ("running into that segment", NO_RIGHTS - 7),
)
def test_a_structure_is_refused_where_the_guest_may_not_read(
    backend: str, row: Row, devices: dict[str, Any]
) -> None:
    structure_is_refused(backend, row, (*NAMES,), devices)


@rows(
    ("in boot info", 0x10000),
    ("in the rest of the low mebibyte", 0x80000),
    ("half in the low mebibyte", 0xFFFFC),
    ("in text", TEXT),
    ("in constants", CONSTANTS),
    ("running into constants", CONSTANTS - 7),
    ("running out of constants", CONSTANTS + PAGE - 1),
)
def test_a_structure_for_an_answer_is_refused_where_the_guest_may_not_write(
    backend: str, row: Row, devices: dict[str, Any]
) -> None:
    structure_is_refused(backend, row, ANSWERED, devices)


def test_a_structure_may_end_where_memory_ends(devices: dict[str, Any]) -> None:
    """Each call is made there in one boot; a copy of what it left there is kept."""
    guest = Bare([NET, BLOCK])
    text = guest.place(b"puts")
    buffer = guest.place(bytes(64))
    answers: dict[int, list[Placed]] = {}
    for call in (*ANSWERED, PUTS, HALT):
        size = struct.calcsize(LAYOUTS[call])
        values = fields(call, text if call == PUTS else buffer, 4 if call == PUTS else 16)
        for i, (word,) in enumerate(struct.iter_unpack("<Q", struct.pack(LAYOUTS[call], *values))):
            guest.store(M - size + 8 * i, word)
        guest.out(PORT + call, M - size)
        answers[call] = [guest.load(gpa) for gpa in range(M - size, M, 8)]
    ran = run(guest, devices)
    assert (ran.result.reason, ran.result.status, ran.console) == (ExitReason.EXIT, 7, b"puts")
    words = {call: [ran.at(word)[0] for word in answers[call]] for call in ANSWERED}
    assert words.pop(WALLTIME)[0] > 1_600_000_000 * 10**9
    poll = words.pop(POLL)
    assert poll[:2] == [0, 2] and poll[2] & 0xFFFFFFFF == 1  # the frame that waits
    for call, answered in words.items():
        assert answered[:-1] == list(fields(call, buffer, 16)[:-1]), NAMES[call]
        assert answered[-1] & 0xFFFFFFFF == OK, NAMES[call]
    assert ran.raw(buffer, 17) == b"\xe0" * 16 + b"\0"  # the frame


def test_a_structure_that_is_only_read_may_be_read_only(devices: dict[str, Any]) -> None:
    """One structure is in execute-only text. The other is a halt's in constants: status 0xC0C0C0C0, with a
    cookie that is not in memory."""
    guest = Bare([NET, BLOCK])
    text = guest.place(b"from text")
    guest.code(b"\xeb\x10")  # jmp over it
    in_text = guest.here
    guest.code(struct.pack(L_PUTS, text, 9))
    guest.out(PORT + PUTS, in_text)
    guest.out(PORT + HALT, CONSTANTS)
    ran = run(guest, devices)
    assert ran.console == b"from text"
    refused(ran, HALT, 0xC0C0C0C0C0C0C0C0, 512)


@pytest.mark.parametrize("net_ring", ["off", "on"])
def test_with_4_gib_addresses_are_valid_up_to_the_end_of_32_bits(
    backend: str, net_ring: str, devices: dict[str, Any]
) -> None:
    """With a ring the guest's memory ends 2 MiB lower, and valid addresses end there too."""
    end = (1 << 32) - (2 << 20 if (backend, net_ring) == ("kvm", "on") else 0)
    guest = Bare([NET, BLOCK])
    guest.store(end - 8, 0)
    guest.out(PORT + WALLTIME, end - 8)
    seen = guest.load(end - 8)
    guest.out(PORT + WALLTIME, end - 7)
    ran = run(guest, devices | {"net_ring": net_ring}, mem=4096)
    assert ran.at(seen)[0] > 1_600_000_000 * 10**9
    refused(ran, WALLTIME, end - 7, 8)


# ---- buffers


def buffer_is_refused(backend: str, row: Row, calls: tuple[int, ...], devices: dict[str, Any]) -> None:
    """A buffer that is longer than the disk is refused for its length first (test_hypercalls.py), so such
    rows skip the block calls."""
    if row.length > CAPACITY:
        calls = tuple(call for call in calls if call not in (BLOCK_WRITE, BLOCK_READ))
    for call, site in calls_to_try(backend, row, calls):
        guest = Bare([NET, BLOCK])
        guest.call(call, LAYOUTS[call], *fields(call, row.at, row.length), site=site)
        guest.halt()
        refused(run(guest, devices), call, row.at, row.length)


@rows(
    ("one byte too long", M - 15, 16),
    ("all but the first byte too far", M - 1, 2),
    ("at the end of memory", M, 1),
    ("empty, after the end", M + 1, 0),
    ("in the 5th gigabyte", 1 << 32, 16),
    ("in the upper half", 1 << 63, 16),
    ("ending where addresses end", U64 - 16, 16),
    ("empty, where addresses end", U64 - 1, 0),
    ("wrapping to null", U64 - 1, 2),
    ("wrapping into memory", U64 - PAGE, 2 * PAGE),
    ("wrapping to its own beginning", HEAP, U64 - 1),
    ("wrapping to null from within", HEAP, U64 - HEAP),
    ("as long as half of all addresses", HEAP, 1 << 63),
    ("as long as memory", HEAP, M),
    ("null", 0, 16),
    ("in the tables", 0x2000, 16),
    ("half below boot info", 0xFFF8, 16),
    ("in a segment without rights", NO_RIGHTS, 16),
    ("the last byte of that segment", NO_RIGHTS + PAGE - 1, 1),
    ("running into that segment", NO_RIGHTS - 15, 16),
    ("around that segment", NO_RIGHTS - PAGE, 3 * PAGE),
)
def test_a_buffer_is_refused_where_the_guest_may_not_read(
    backend: str, row: Row, devices: dict[str, Any]
) -> None:
    buffer_is_refused(backend, row, (*BUFFER_READ, *BUFFER_FILLED), devices)


@rows(
    ("in boot info", 0x10000, 16),
    ("in the rest of the low mebibyte", 0x80000, 16),
    ("half in the low mebibyte", 0xFFFF8, 16),
    ("in text", TEXT, 16),
    ("in constants", CONSTANTS, 16),
    ("the last byte of constants", CONSTANTS + PAGE - 1, 1),
    ("running into constants", CONSTANTS - 15, 16),
    ("around constants", CONSTANTS - PAGE, 3 * PAGE),
)
def test_a_buffer_to_fill_is_refused_where_the_guest_may_not_write(
    backend: str, row: Row, devices: dict[str, Any]
) -> None:
    """On KVM each row is tried with both calls."""
    for call in BUFFER_FILLED:
        buffer_is_refused(backend, row, (call,), devices)


def test_a_buffer_may_end_where_memory_ends(devices: dict[str, Any]) -> None:
    """This holds for an empty buffer as well, which also begins there."""
    guest = Bare([NET, BLOCK])
    calls = []
    for length in (16, 0):
        guest.store(M - 16, int.from_bytes(b"puts at ", "little"))
        guest.store(M - 8, int.from_bytes(b"the end\n", "little"))
        for call in (*BUFFER_READ, NET_READ, BLOCK_READ):
            calls.append((call, guest.call(call, LAYOUTS[call], *fields(call, M - length, length))))
            if call in BUFFER_FILLED and length:
                guest.call(PUTS, L_PUTS, M - 16, 16)
    guest.halt()
    ran = run(guest, devices)
    assert ran.result.ok
    assert ran.console == b"puts at the end\n" + b"\xe0" * 16 + b"puts at the end\n"
    for call, placed in calls:
        if call != PUTS and placed != calls[-2][1]:  # the second net_read: there was one frame
            assert ran.at(placed)[-1] == OK, NAMES[call]


def test_a_buffer_that_is_only_read_may_be_read_only(devices: dict[str, Any]) -> None:
    """The places are boot info, the end of the low mebibyte and across it, text, and constants, up to their
    end."""
    guest = Bare([NET, BLOCK])
    places = (0x10000, 0xFFFF0, 0xFFFF8, TEXT, CONSTANTS, CONSTANTS + PAGE - 16, DATA - 16)
    calls = [
        guest.call(call, LAYOUTS[call], *fields(call, gpa, 16)) for gpa in places for call in BUFFER_READ
    ]
    guest.halt()
    ran = run(guest, devices)
    assert ran.result.ok
    assert all(ran.at(call)[-1] == OK for call in calls if call.layout != L_PUTS)
    assert len(ran.console) == 16 * len(places) and ran.console[64:96] == b"\xc0" * 32
