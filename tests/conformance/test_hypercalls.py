"""Hypercalls, row by row: how a guest makes one, in which order it is checked, and what it answers.

Each row boots a few instructions (tests/bare.py) and reads the structures back after the guest has ended.
test_range_check.py has the rules for addresses.
"""

import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bare import (
    AGAIN,
    BLOCK_READ,
    BLOCK_WRITE,
    DATA,
    EINVAL,
    EUNSPEC,
    HALT,
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
    WALLTIME,
    Bare,
)
from support import still_runs

from tender import DISCARD, BlockFile, ExitReason, Image, NetFd, Vm, VmConfig, VmResult

pytestmark = pytest.mark.backends

U64 = 1 << 64
WILD = 0xFFFFFFFFFFFFF000
"""An address where there is no memory: a call that reads or writes there ends the run."""
UNTOUCHED = 0x7E7E7E7E
NET, BLOCK = ("service0", "net"), ("storage", "block")


def ended(result: VmResult, reason: str, message: str) -> None:
    assert (result.reason, result.status, result.message) == (reason, 1, message)


def bad_port(result: VmResult, port: int) -> None:
    ended(result, ExitReason.BAD_PORT, f"Invalid guest port access: port={port:#x}")


# ---- how a hypercall is made


def test_every_other_port_ends_the_run(backend: str) -> None:
    """Tries 0x4f0 to 0x610 except 0x500 to 0x508. Without a ring 0x600 ends the run as well. Both backends
    use one table of ports; KVM is slow here, so only the edges of the range are tried on it."""
    every = (*range(0x4F0, 0x500), *range(0x509, 0x611))
    edges = (*range(0x4F8, 0x500), *range(0x509, 0x512), 0x580, 0x5FF, 0x600, 0x601, 0x608, 0x610)
    for port in every if backend == "sandbox" else edges:
        guest = Bare()
        guest.out(port, DATA)
        bad_port(guest.run().result, port)


@pytest.mark.parametrize("site", [True, False], ids=["site", "trap"])
def test_hypercall_0_does_not_exist(site: bool) -> None:
    guest = Bare()
    guest.out(PORT, DATA, site=site)
    ended(guest.run().result, ExitReason.BAD_HYPERCALL, "Invalid guest hypercall: num=0")


@pytest.mark.parametrize("site", [True, False], ids=["site", "trap"])
@pytest.mark.parametrize("number", [BLOCK_WRITE, BLOCK_READ, NET_WRITE, NET_READ])
def test_a_call_for_a_device_that_is_not_attached_is_invalid_for_any_pointer(number: int, site: bool) -> None:
    guest = Bare()
    guest.out(PORT + number, 0xFFFFFFF0, site=site)
    ended(guest.run().result, ExitReason.BAD_HYPERCALL, f"Invalid guest hypercall: num={number}")


@pytest.mark.parametrize(
    ("device", "numbers"), [(NET, (BLOCK_WRITE, BLOCK_READ)), (BLOCK, (NET_WRITE, NET_READ))]
)
def test_a_device_of_the_other_kind_does_not_enable_the_calls(
    device: tuple[str, str], numbers: tuple[int, ...], wire: socket.socket, disk: Path
) -> None:
    for number in numbers:
        guest = Bare([device])
        guest.out(PORT + number, DATA)
        attached: dict[str, Any] = (
            {"net": NetFd(wire.fileno())} if device is NET else {"block": BlockFile(str(disk))}
        )
        result = guest.run(**attached).result
        ended(result, ExitReason.BAD_HYPERCALL, f"Invalid guest hypercall: num={number}")


@pytest.mark.parametrize(
    ("code", "port"),
    [
        ("66ba0205 ee", 0x502),  # mov $0x502, %dx; out %al, (%dx)
        ("66ba0205 66ef", 0x502),  # out %ax, (%dx)
        ("66ba0205 ec", 0x502),  # in (%dx), %al
        ("66ba0205 66ed", 0x502),  # in (%dx), %ax
        ("66ba0205 ed", 0x502),  # in (%dx), %eax
        ("66ba0805 ed", 0x508),
        ("e680", 0x80),  # out %al, $0x80
        ("e780", 0x80),  # out %eax, $0x80
        ("e440", 0x40),  # in $0x40, %al
        ("e540", 0x40),  # in $0x40, %eax
        ("66ba0205 be00001400 6e", 0x502),  # mov $DATA, %esi; outsb
        ("66ba0205 be00001400 666f", 0x502),  # outsw
        ("66ba0205 bf00001400 6d", 0x502),  # mov $DATA, %edi; insl
        ("66ba0205 b904000000 bf00001400 f36d", 0x502),  # mov $4, %ecx; rep insl
        ("66ba0205 b904000000 bf00001400 f36c", 0x502),  # rep insb
        ("66ba0205 b904000000 be00001400 f36e", 0x502),  # rep outsb
        ("66ba0205 b904000000 be00001400 f3666f", 0x502),  # rep outsw
    ],
)
def test_only_out_of_32_bits_is_a_hypercall(code: str, port: int) -> None:
    guest = Bare()
    guest.place(bytes(64))
    guest.code(code)
    bad_port(guest.run().result, port)


@pytest.mark.parametrize("code", ["6f", "b901000000 f36f", "b902000000 f36f", "b9ffffffff f36f"])
@pytest.mark.parametrize("port", [0x508, 0x502, 0x501])
def test_outsl_and_rep_outsl_are_not_hypercalls(code: str, port: int) -> None:
    """KVM reports each of their accesses like an `out`. The value at RSI would be a valid hypercall, but it
    is in memory and not in a register."""
    guest = Bare()
    halt = guest.structure(L_HALT, 0, 7)
    pointer = guest.place(struct.pack("<I", halt.gpa) * 2)
    guest.code(
        b"\x66\xba" + struct.pack("<H", port) + b"\xbe" + struct.pack("<I", pointer) + bytes.fromhex(code)
    )
    bad_port(guest.run().result, port)


def test_rep_outsl_ends_a_guest_after_a_long_run(backend: str) -> None:
    """The run loop recognises `rep outsl` by KVM's registers, and in a long run it looks at them only at
    every sixteenth exit."""
    guest = Bare()
    call = guest.structure(L_WALLTIME, 0)
    words = guest.place(struct.pack("<I", call.gpa) * 64)
    for _ in range(300):
        guest.out(PORT + WALLTIME, call.gpa)
    guest.code(b"\x66\xba" + struct.pack("<H", PORT + WALLTIME) + b"\xbe" + struct.pack("<I", words))
    guest.code("b940000000 31c0 f36f")  # mov $64, %ecx; xor %eax, %eax; rep outsl
    result = guest.run().result
    bad_port(result, PORT + WALLTIME)
    if backend == "kvm":
        assert 300 < result.counters.exits <= 300 + 16 + 1


@pytest.mark.parametrize("site", [True, False], ids=["site", "trap"])
def test_the_upper_half_of_rax_is_ignored(site: bool) -> None:
    guest = Bare()
    halt = guest.structure(L_HALT, 0, 7)
    guest.code(b"\x48\xb8" + struct.pack("<Q", 0xDEADBEEF << 32 | halt.gpa))  # movabs $..., %rax
    guest.code("ba08050000 ef" if site else "66ba0805 ef")
    assert guest.run().result.status == 7


@pytest.mark.parametrize("site", [True, False], ids=["site", "trap"])
def test_no_register_is_changed_by_a_hypercall(site: bool) -> None:
    """Checks all registers except RSP, including the two operands, and the flags."""
    guest = Bare()
    call = guest.structure(L_WALLTIME, 0)
    values = {
        number: 0x1010101010101010 * (number + 1) % U64 for number in range(16) if number not in (0, 2, 4)
    }
    for number, value in values.items():  # movabs $value, %reg
        guest.code(bytes([0x48 | number >> 3, 0xB8 | number & 7]) + struct.pack("<Q", value))
    guest.code("f9")  # stc
    guest.out(PORT + WALLTIME, call.gpa, site=site)
    slots = {}
    for number in (*values, 0, 2):  # mov %reg, slot
        slots[number] = guest.structure("<Q", 0)
        modrm = 0x04 | (number & 7) << 3
        guest.code(
            bytes([0x48 | (number >> 3) << 2, 0x89, modrm, 0x25]) + struct.pack("<I", slots[number].gpa)
        )
    carry = guest.structure("<B", 7)
    guest.code(b"\x0f\x92\x04\x25" + struct.pack("<I", carry.gpa))  # setc carry
    guest.halt()
    ran = guest.run()
    assert ran.result.ok
    assert {number: ran.at(slot)[0] for number, slot in slots.items()} == values | {
        0: call.gpa,
        2: PORT + WALLTIME,
    }
    assert ran.at(carry) == (1,)


# ---- 1 walltime, 2 puts


@pytest.mark.parametrize("site", [True, False], ids=["site", "trap"])
def test_walltime_is_the_hosts_time_in_8_bytes(site: bool) -> None:
    guest = Bare()
    call = guest.call(WALLTIME, "<QQ", 0, UNTOUCHED, site=site)
    guest.halt()
    before = time.time_ns()
    nsecs, after = guest.run().at(call)
    assert before <= nsecs <= time.time_ns()
    assert after == UNTOUCHED


@pytest.mark.parametrize("site", [True, False], ids=["site", "trap"])
def test_puts_writes_raw_bytes_and_changes_nothing(site: bool) -> None:
    guest = Bare()
    text = bytes(range(256)) + b"\0\0end"
    at = guest.place(text)
    calls = [guest.call(PUTS, "<QQQ", at, length, UNTOUCHED, site=site) for length in (len(text), 0, 1, 3)]
    guest.halt()
    ran = guest.run()
    assert ran.console == text + text[:1] + text[:3]
    assert [ran.at(call) for call in calls] == [(at, n, UNTOUCHED) for n in (len(text), 0, 1, 3)]
    assert ran.result.counters.console_bytes == len(text) + 4


def test_puts_reads_where_the_command_line_and_the_manifest_are() -> None:
    """Guests print the command line directly from its place below 1 MiB."""
    guest = Bare()
    guest.call(PUTS, L_PUTS, 0x10038 + 8 + 104, 8)
    guest.halt()
    assert guest.run(args=("cmd", "line")).console == b"cmd line"


# ---- 3 poll


@pytest.fixture
def wires() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Two networks: the test's end and the guest's end of each."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    for ours, _ in pairs:
        ours.settimeout(120)
    yield pairs
    for pair in pairs:
        for end in pair:
            end.close()


@pytest.fixture
def wire(wires: list[tuple[socket.socket, socket.socket]]) -> socket.socket:
    """The guest's end of the first network."""
    return wires[0][1]


Wires = list[tuple[socket.socket, socket.socket]]


def two_nets_and_a_disk(wires: Wires, disk: Path) -> dict[str, Any]:
    """Attaches two networks and a disk: service0 is handle 1, storage is 2, service1 is 3."""
    nets = {f"service{number}": NetFd(wires[number][1].fileno()) for number in range(2)}
    return {"net": nets, "block": {"storage": BlockFile(str(disk))}}


THREE = (NET, BLOCK, ("service1", "net"))


def test_poll_with_timeout_0_returns_immediately(wires: Wires, disk: Path) -> None:
    """A disk is never in the set of ready devices."""
    guest = Bare(THREE)
    call = guest.call(POLL, L_POLL, 0, U64 - 1, UNTOUCHED)
    guest.halt()
    ran = guest.run(**two_nets_and_a_disk(wires, disk))
    assert ran.at(call) == (0, 0, 0)


@pytest.mark.parametrize("ready", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("timeout_ns", [0, 1, 86400 * 10**9, 2**63 - 1, 2**63, U64 - 1])
def test_poll_with_a_packet_returns_immediately_with_its_bit(
    wires: Wires, disk: Path, timeout_ns: int, ready: tuple[int, ...]
) -> None:
    """It is called twice: nothing was read in between, so the same devices are ready. A day and five
    centuries are valid timeouts."""
    for number in ready:
        wires[number][0].send(bytes(60))
    guest = Bare(THREE)
    calls = [guest.call(POLL, L_POLL, timeout_ns, 0, UNTOUCHED) for _ in range(2)]
    guest.halt()
    ran = guest.run(**two_nets_and_a_disk(wires, disk))
    bits = sum({0: 2, 1: 8}[number] for number in ready)
    assert [ran.at(call) for call in calls] == [(timeout_ns, bits, len(ready))] * 2


@pytest.mark.parametrize("timeout_ns", [86400 * 10**9, 2**63, U64 - 1])
def test_poll_without_devices_waits(timeout_ns: int) -> None:
    guest = Bare()
    guest.call(POLL, L_POLL, timeout_ns, 0, 0)
    guest.halt()
    with Image.from_bytes(guest.elf()) as image, Vm(image, VmConfig(mem=2), console=DISCARD) as vm:
        vm.start()
        limit = time.monotonic() + 120
        while not vm.counters.hypercalls["poll"]:
            assert time.monotonic() < limit
        assert still_runs(vm, 0.2)
        vm.stop()
        result = vm.wait(120)
    assert (result.reason, result.counters.hypercalls["poll"]) == (ExitReason.STOPPED, 1)


def test_poll_waits_until_its_timeout() -> None:
    guest = Bare()
    before = guest.call(WALLTIME, L_WALLTIME, 0)
    calls = [guest.call(POLL, L_POLL, 30_000_000, 0, UNTOUCHED, site=site) for site in (True, False)]
    after = guest.call(WALLTIME, L_WALLTIME, 0)
    guest.halt()
    ran = guest.run()
    assert [ran.at(call) for call in calls] == [(30_000_000, 0, 0)] * 2
    assert ran.at(after)[0] - ran.at(before)[0] >= 2 * 29_000_000


# ---- 4 block_write, 5 block_read

CAPACITY = 1 << 16


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(number * 7 % 251 for number in range(CAPACITY)))
    return path


BLOCK_ROWS = [
    # handle, offset, length, answer; handle 1 is a network, handle 2 the disk
    *((handle, 0, 512, EINVAL) for handle in (0, 1, 3, 63, 64, 2**31, 2**32 + 2, U64 - 1)),
    *((2, 0, length, EINVAL) for length in (2**63, U64 - 1, CAPACITY + 1, 2**63 - 1)),
    *((2, offset, 512, EINVAL) for offset in (CAPACITY, CAPACITY + 512, 2**63, U64 - 1, U64 - 512)),
    (2, CAPACITY - 511, 512, EINVAL),
    (2, CAPACITY, 0, EINVAL),
    (2, 512, U64 - 512, EINVAL),
    (2, 512, U64 - 511, EINVAL),
]
BLOCK_GOOD = [
    (0, 512),
    (512, 512),
    (CAPACITY - 512, 512),
    (CAPACITY - 1, 1),
    (0, 0),
    (1, 3),
    (511, 1026),
    (0, CAPACITY),
]


@pytest.mark.parametrize("number", [BLOCK_WRITE, BLOCK_READ])
@pytest.mark.parametrize("site", [True, False], ids=["site", "trap"])
def test_block_checks_handle_and_range_before_the_buffer(
    number: int, site: bool, wire: socket.socket, disk: Path
) -> None:
    guest = Bare([NET, BLOCK])
    calls = [
        (
            guest.call(number, L_BLOCK, handle, offset, WILD, length, UNTOUCHED, site=site),
            handle,
            offset,
            length,
        )
        for handle, offset, length, _ in BLOCK_ROWS
    ]
    guest.halt()
    before = disk.read_bytes()
    ran = guest.run(net=NetFd(wire.fileno()), block=BlockFile(str(disk)))
    assert ran.result.ok, ran.result.message
    for call, handle, offset, length in calls:
        assert ran.at(call) == (handle, offset, WILD, length, EINVAL)
    assert disk.read_bytes() == before


@pytest.mark.parametrize("number", [BLOCK_WRITE, BLOCK_READ])
def test_block_checks_the_buffer_when_the_range_is_good(number: int, disk: Path) -> None:
    guest = Bare([BLOCK])
    call = guest.call(number, L_BLOCK, 1, 0, WILD, 512, UNTOUCHED)
    guest.halt()
    ran = guest.run(block=BlockFile(str(disk)))
    assert ran.result.reason == ExitReason.BAD_ACCESS
    assert ran.result.message.startswith(f"Invalid guest access: gpa={WILD:#x}, sz=512")
    assert ran.at(call)[4] == UNTOUCHED


def test_block_read_accepts_any_length_and_offset_within_the_disk(disk: Path) -> None:
    """Neither alignment nor a single block is required. The length is not changed, and no byte after the
    buffer is."""
    content = disk.read_bytes()
    guest = Bare([BLOCK])
    buffer = guest.place(bytes(CAPACITY + 8), align=4096)
    puts = []
    for offset, length in BLOCK_GOOD:
        guest.store(buffer + length, 0xA5A5A5A5A5A5A5A5)
        call = guest.call(BLOCK_READ, L_BLOCK, 1, offset, buffer, length, UNTOUCHED)
        guest.call(PUTS, L_PUTS, buffer, length + 8)
        puts.append((call, offset, length))
    guest.halt()
    ran = guest.run(block=BlockFile(str(disk)))
    console = b""
    for call, offset, length in puts:
        assert ran.at(call) == (1, offset, buffer, length, OK)
        console += content[offset : offset + length] + b"\xa5" * 8
    assert ran.console == console


def test_block_write_accepts_any_length_and_offset_within_the_disk(disk: Path) -> None:
    content = bytearray(disk.read_bytes())
    guest = Bare([BLOCK])
    source = bytes(number * 3 % 256 for number in range(CAPACITY))
    at = guest.place(source)
    calls = []
    for offset, length in BLOCK_GOOD[:-1]:
        calls.append((guest.call(BLOCK_WRITE, L_BLOCK, 1, offset, at, length, UNTOUCHED), offset, length))
        content[offset : offset + length] = source[:length]
    guest.halt()
    ran = guest.run(block=BlockFile(str(disk)))
    assert [ran.at(call) for call, _, _ in calls] == [(1, offset, at, n, OK) for _, offset, n in calls]
    assert disk.read_bytes() == content


def test_block_write_to_a_read_only_disk_is_unspecified_and_changes_nothing(disk: Path) -> None:
    """A bad range is reported before that."""
    before = disk.read_bytes()
    guest = Bare([BLOCK])
    at = guest.place(bytes(512))
    calls = [guest.call(BLOCK_WRITE, L_BLOCK, 1, offset, at, 512, UNTOUCHED) for offset in (0, CAPACITY)]
    read = guest.call(BLOCK_READ, L_BLOCK, 1, 0, at, 512, UNTOUCHED)
    guest.halt()
    ran = guest.run(block=BlockFile(str(disk), read_only=True))
    assert [ran.at(call)[4] for call in (*calls, read)] == [EUNSPEC, EINVAL, OK]
    assert disk.read_bytes() == before


def test_a_read_past_the_end_of_a_truncated_file_is_unspecified_and_the_guest_goes_on(disk: Path) -> None:
    """The capacity stays what it was at the start. The part after the file's new end cannot be read."""
    guest = Bare([BLOCK])
    at = guest.place(bytes(1024))
    calls = [
        guest.call(BLOCK_READ, L_BLOCK, 1, offset, at, 1024, UNTOUCHED) for offset in (3072, 3584, 4096, 0)
    ]
    guest.halt()
    with Image.from_bytes(guest.elf()) as image:
        with Vm(image, VmConfig(mem=2, block=BlockFile(str(disk)))) as vm:
            os.truncate(disk, 4096)
            result = vm.run(timeout=60)
            answers = [struct.unpack("<i", vm.memory(call.gpa + 32, 4))[0] for call in calls]
    assert result.ok and answers == [OK, EUNSPEC, EUNSPEC, OK]
    assert result.counters.block_errors == 2


# ---- 6 net_write, 7 net_read


NET_HANDLES = (0, 2, 3, 63, 64, 2**32 + 1, U64 - 1)


@pytest.mark.parametrize("number", [NET_WRITE, NET_READ])
@pytest.mark.parametrize("site", [True, False], ids=["site", "trap"])
def test_net_checks_the_handle_before_the_buffer(
    number: int, site: bool, wire: socket.socket, disk: Path
) -> None:
    guest = Bare([NET, BLOCK])
    calls = [guest.call(number, L_NET, handle, WILD, 60, UNTOUCHED, site=site) for handle in NET_HANDLES]
    guest.halt()
    ran = guest.run(net=NetFd(wire.fileno()), block=BlockFile(str(disk)))
    assert [ran.at(call) for call in calls] == [(handle, WILD, 60, EINVAL) for handle in NET_HANDLES]


@pytest.mark.parametrize("number", [NET_WRITE, NET_READ])
def test_net_checks_the_buffer_when_the_handle_is_good(number: int, wire: socket.socket) -> None:
    guest = Bare([NET])
    guest.call(number, L_NET, 1, WILD, 60, UNTOUCHED)
    guest.halt()
    result = guest.run(net=NetFd(wire.fileno())).result
    assert result.reason == ExitReason.BAD_ACCESS
    assert result.message.startswith(f"Invalid guest access: gpa={WILD:#x}, sz=60")


def test_net_write_sends_one_frame_per_call(wires: Wires) -> None:
    ours, theirs = wires[0]
    frames = [bytes([size % 251]) * size for size in (14, 60, 61, 1514, 9014)]
    guest = Bare([NET])
    calls = [
        (guest.call(NET_WRITE, L_NET, 1, guest.place(frame), len(frame), UNTOUCHED), len(frame))
        for frame in frames
    ]
    guest.halt()
    ran = guest.run(net=NetFd(theirs.fileno()))
    assert [ours.recv(1 << 16) for _ in frames] == frames
    assert [ran.at(call)[2:] for call, _ in calls] == [(length, OK) for _, length in calls]


def test_net_write_drops_what_cannot_be_sent_and_never_answers_again(wires: Wires) -> None:
    """First there is no space for the frame, then no receiver: each call answers OK, and the drop is
    counted. A guest treats AGAIN as a broken tender."""
    ours, theirs = wires[0]
    theirs.setblocking(False)
    sent = 0
    while True:
        try:
            sent += bool(theirs.send(bytes(60)))
        except BlockingIOError:
            break
    guest = Bare([NET])
    frame = guest.place(bytes(60))
    calls = [guest.call(NET_WRITE, L_NET, 1, frame, 60, UNTOUCHED) for _ in range(3)]
    guest.halt()
    for _ in range(2):
        ran = guest.run(net=NetFd(theirs.fileno()))
        assert [ran.at(call) for call in calls] == [(1, frame, 60, OK)] * 3
        assert (ran.result.counters.net_tx_drops, ran.result.counters.net_tx_packets) == (3, 0)
        ours.close()
    assert sent > 0


def test_net_read_returns_frames_in_order_and_drops_longer_ones(wires: Wires) -> None:
    """A frame that does not fit is counted, and the call reads the next one. With none left the answer is
    AGAIN, and the length stays."""
    ours, theirs = wires[0]
    fits, too_long = [60, 9014, 14, 65535], 100
    for size in (60, 9014, too_long, 14, 65535):
        ours.send(bytes([size % 251]) * size)
    guest = Bare([NET])
    calls = []
    for buffer in (2048, 9014, 64, 65536, 14):
        at = guest.place(b"\xa5" * (buffer + 8))
        calls.append((guest.call(NET_READ, L_NET, 1, at, buffer, UNTOUCHED), at, buffer))
    guest.halt()
    ran = guest.run(net=NetFd(theirs.fileno()))
    seen = [(ran.at(call)[2:], ran.raw(at, buffer + 8)) for call, at, buffer in calls]
    for (_, _, buffer), size, (fields, memory) in zip(calls, fits, seen, strict=False):
        assert fields == (size, OK)
        assert (memory[:size], memory[buffer:]) == (bytes([size % 251]) * size, b"\xa5" * 8)
    assert seen[4] == ((14, AGAIN), b"\xa5" * 22)
    assert (ran.result.counters.net_rx_packets, ran.result.counters.net_rx_drops) == (4, 1)


def test_net_read_of_a_closed_wire_answers_again_and_poll_stops_reporting_it(wires: Wires) -> None:
    """poll reports the closed wire once. After that nothing wakes the guest any more, so it does not spin."""
    ours, theirs = wires[0]
    ours.close()
    guest = Bare([NET])
    ready = guest.call(POLL, L_POLL, 10**9, 0, UNTOUCHED)
    buffer = guest.place(bytes(64))
    reads = [guest.call(NET_READ, L_NET, 1, buffer, 64, UNTOUCHED) for _ in range(2)]
    later = guest.call(POLL, L_POLL, 1000, 0, UNTOUCHED)
    guest.halt()
    ran = guest.run(net=NetFd(theirs.fileno()))
    assert ran.at(ready)[1:] == (2, 1)
    assert [ran.at(read) for read in reads] == [(1, buffer, 64, AGAIN)] * 2
    assert ran.at(later)[1:] == (0, 0)


# ---- 8 halt


@pytest.mark.parametrize("site", [True, False], ids=["site", "trap"])
@pytest.mark.parametrize(
    ("given", "status", "reason"),
    [
        (0, 0, ExitReason.EXIT),
        (1, 1, ExitReason.EXIT),
        (254, 254, ExitReason.EXIT),
        (255, 255, ExitReason.ABORT),
        (256, 0, ExitReason.EXIT),
        (-1, 255, ExitReason.EXIT),
        (2**31 - 1, 255, ExitReason.EXIT),
        (-(2**31), 0, ExitReason.EXIT),
    ],
)
def test_halt_status_is_the_low_8_bits(given: int, status: int, reason: str, site: bool) -> None:
    guest = Bare()
    guest.call(HALT, L_HALT, 0, given, site=site)
    result = guest.run().result
    assert (result.reason, result.status, result.guest_status, result.trap) == (reason, status, given, None)


def test_halt_cookie_points_to_the_registers_of_a_trap() -> None:
    guest = Bare()
    registers = [0x400000000, 2, 0x101234, 8, 0x10246, 0x1FFFF0, 0x10]
    cookie = guest.place(struct.pack("<7Q", *registers) + bytes(512 - 56))
    guest.halt(255, cookie)
    trap = guest.run().result.trap
    assert trap is not None
    assert [trap.cr2, trap.error_code, trap.rip, trap.cs, trap.rflags, trap.rsp, trap.ss] == registers


@pytest.mark.parametrize("cookie", [2 * MIB - 512, 0x100000, 0x10000, 0x140000 - 512])
def test_halt_cookie_may_point_to_any_512_readable_bytes(cookie: int) -> None:
    """The rows are the end of memory, execute-only text, boot info, and the space between segments."""
    guest = Bare()
    guest.halt(7, cookie)
    result = guest.run().result
    assert (result.reason, result.status, result.trap is not None) == (ExitReason.EXIT, 7, True)


@pytest.mark.parametrize("cookie", [1, 0xFFFF, 2 * MIB - 511, 2 * MIB, 1 << 32, 1 << 63, U64 - 1, U64 - 512])
def test_halt_cookie_that_is_not_in_memory_ends_the_run(cookie: int) -> None:
    guest = Bare()
    guest.halt(7, cookie)
    result = guest.run().result
    assert (result.reason, result.status, result.guest_status) == (ExitReason.BAD_ACCESS, 1, None)
    assert result.message.startswith(
        f"Invalid guest access: gpa={cookie:#x}, sz=512 (hypercall halt, rip=0x1000"
    )
