"""What an address may be, row by row: of the structure of each hypercall, and of each buffer that one names.

A row that is refused ends the run, so it is a boot of its own for each call. Both backends ask one function: behind the
sandbox every call meets every row, from a site and by a trap; on KVM, where a boot is dear, every row meets one call
and every call some rows. A halt's cookie is in test_hypercalls.py, a batch's array in test_disk_load.py.
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
"""Segments of a page each: only to be read, and not even that."""
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
"""Their structures are written to."""
TAKEN, FILLED = (PUTS, BLOCK_WRITE, NET_WRITE), (BLOCK_READ, NET_READ)
"""By what the host does with the buffer that they name."""
NET, BLOCK = ("service0", "net"), ("storage", "block")


class Row(NamedTuple):
    number: int  # of the row: which call it meets on KVM
    at: int
    length: int = 0


def rows(*what: tuple[str, int] | tuple[str, int, int]) -> pytest.MarkDecorator:
    """A parametrisation by these: what the row is called, an address, a length."""
    made = [pytest.param(Row(i, *numbers), id=name) for i, (name, *numbers) in enumerate(what)]
    return pytest.mark.parametrize("row", made)


def met(backend: str, row: Row, calls: tuple[int, ...]) -> list[tuple[int, bool]]:
    """The calls that this row is tried with, and whether each is a site."""
    if backend == "kvm":
        return [(calls[row.number % len(calls)], True)]
    return [(call, site) for call in calls for site in (True, False)]


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A network with handle 1 where a frame of 16 bytes waits, and a disk with handle 2, whose first byte is 0xD0."""
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
    """What the structure of a call with this buffer holds; of one without, nothing that would end the run."""
    if call in (BLOCK_WRITE, BLOCK_READ):
        return (2, 0, data, length, 0x7E7E7E7E)
    if call in (NET_WRITE, NET_READ):
        return (1, data, length, 0x7E7E7E7E)
    return {WALLTIME: (0,), PUTS: (data, length), POLL: (0, 9, 9), HALT: (0, 7)}[call]


# ---- structures


def structure_is_refused(backend: str, row: Row, calls: tuple[int, ...], devices: dict[str, Any]) -> None:
    """A negative `row.at` is so many bytes behind the last place that would do."""
    for call, site in met(backend, row, calls):
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
    ("far behind it", M + 0x1000),
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
def test_no_structure_lies(backend: str, row: Row, devices: dict[str, Any]) -> None:
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
def test_no_structure_that_is_answered_lies(backend: str, row: Row, devices: dict[str, Any]) -> None:
    structure_is_refused(backend, row, ANSWERED, devices)


def test_a_structure_may_end_where_memory_ends(devices: dict[str, Any]) -> None:
    """Each call in one boot: made there, and what it left there kept."""
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
    """In text that is only to be executed; a halt's in constants is status 0xC0C0C0C0 with a cookie that is none."""
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
def test_where_memory_ends_at_4_gib_so_do_32_bits(
    backend: str, net_ring: str, devices: dict[str, Any]
) -> None:
    """With a ring it ends 2 MiB below, and what the guest may name ends there too."""
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
    """Where a disk is shorter than the buffer, that is the first thing that is wrong: see test_hypercalls.py."""
    if row.length > CAPACITY:
        calls = tuple(call for call in calls if call not in (BLOCK_WRITE, BLOCK_READ))
    for call, site in met(backend, row, calls):
        guest = Bare([NET, BLOCK])
        guest.call(call, LAYOUTS[call], *fields(call, row.at, row.length), site=site)
        guest.halt()
        refused(run(guest, devices), call, row.at, row.length)


@rows(
    ("one byte too long", M - 15, 16),
    ("all but the first byte too far", M - 1, 2),
    ("at the end of memory", M, 1),
    ("empty, behind the end", M + 1, 0),
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
def test_no_buffer_lies(backend: str, row: Row, devices: dict[str, Any]) -> None:
    buffer_is_refused(backend, row, (*TAKEN, *FILLED), devices)


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
def test_no_buffer_that_is_filled_lies(backend: str, row: Row, devices: dict[str, Any]) -> None:
    """On KVM each row meets both."""
    for call in FILLED:
        buffer_is_refused(backend, row, (call,), devices)


def test_a_buffer_may_end_where_memory_ends(devices: dict[str, Any]) -> None:
    """Also an empty one, which begins there too."""
    guest = Bare([NET, BLOCK])
    calls = []
    for length in (16, 0):
        guest.store(M - 16, int.from_bytes(b"puts at ", "little"))
        guest.store(M - 8, int.from_bytes(b"the end\n", "little"))
        for call in (*TAKEN, NET_READ, BLOCK_READ):
            calls.append((call, guest.call(call, LAYOUTS[call], *fields(call, M - length, length))))
            if call in FILLED and length:
                guest.call(PUTS, L_PUTS, M - 16, 16)
    guest.halt()
    ran = run(guest, devices)
    assert ran.result.ok
    assert ran.console == b"puts at the end\n" + b"\xe0" * 16 + b"puts at the end\n"
    for call, placed in calls:
        if call != PUTS and placed != calls[-2][1]:  # the second net_read: there was one frame
            assert ran.at(placed)[-1] == OK, NAMES[call]


def test_a_buffer_that_is_only_taken_may_be_read_only(devices: dict[str, Any]) -> None:
    """In boot info, up to the end of the low mebibyte and across it, in text, in constants and up to their end."""
    guest = Bare([NET, BLOCK])
    places = (0x10000, 0xFFFF0, 0xFFFF8, TEXT, CONSTANTS, CONSTANTS + PAGE - 16, DATA - 16)
    calls = [guest.call(call, LAYOUTS[call], *fields(call, gpa, 16)) for gpa in places for call in TAKEN]
    guest.halt()
    ran = run(guest, devices)
    assert ran.result.ok
    assert all(ran.at(call)[-1] == OK for call in calls if call.layout != L_PUTS)
    assert len(ran.console) == 16 * len(places) and ran.console[64:96] == b"\xc0" * 32
