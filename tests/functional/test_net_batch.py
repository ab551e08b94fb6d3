"""Frames in batches and through the library's queues: no frame that the wire took is lost, reordered
or changed.
"""

import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest
from support import Guest, TapInterface, still_runs, with_note

from tender import CAPTURE, Image, NetFd, Tap, Vm, VmConfig
from tender.result import VmResult

pytestmark = pytest.mark.backends
FACTOR, WORD = 0x9E3779B97F4A7C15, (1 << 64) - 1
HEADER = bytes(12) + b"\x88\xb5"
QUIT = HEADER + struct.pack("<QQ", WORD, 0) + bytes(40)
IN_TEST_VM = bool(os.environ.get("KVMBOX"))
MANY = 5_000 if IN_TEST_VM else 100_000
"""In the test VM another program is the processor. A million, over a TAP, are test_net_load.py's."""

by = pytest.mark.parametrize("by", ["submit", "calls"])


def frame(number: int, size: int = 64) -> bytes:
    return (HEADER + struct.pack("<Q", number)).ljust(size - 8, b"\0") + struct.pack(
        "<Q", number * FACTOR & WORD
    )


@contextmanager
def wire() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def finished(vm: Vm, seconds: float = 100) -> tuple[VmResult, str]:
    result = vm.wait(seconds)
    assert result.ok, result
    assert result.console is not None
    return result, result.console.decode().splitlines()[-1]


@contextmanager
def started(path: Path, net: "NetFd | Tap", *args: str) -> Iterator[Vm]:
    with (
        Image.open(path) as image,
        Vm(image, VmConfig(mem=16, args=args, net=net, net_ring="off"), console=CAPTURE) as vm,
    ):
        vm.start(timeout=100)
        yield vm


@by
def test_a_flood_into_the_guest_is_whole_and_in_order(guest: Guest, by: str) -> None:
    with wire() as (ours, theirs):
        with started(guest("net_batch"), NetFd(theirs.fileno()), "rx", f"--by={by}") as vm:
            for number in range(MANY):
                ours.send(frame(number))
            ours.send(QUIT)
            result, line = finished(vm)
    assert line == f"net_batch: frames {MANY} reordered 0 lost 0 broken 0"
    assert result.counters.net_rx_packets == MANY + 1
    assert result.counters.hypercalls["net_read"] == 0


@by
def test_a_flood_out_of_the_guest_is_in_order_and_what_is_lost_is_counted(guest: Guest, by: str) -> None:
    numbers: list[int] = []

    def read(ours: socket.socket) -> None:
        while got := ours.recv(2048):
            (number,) = struct.unpack_from("<Q", got, 14)
            assert len(got) == 64 and got[-8:] == frame(number)[-8:]
            numbers.append(number)

    with wire() as (ours, theirs):
        reader = threading.Thread(target=read, args=(ours,))
        reader.start()
        with started(guest("net_batch"), NetFd(theirs.fileno()), "tx", f"--by={by}", f"--count={MANY}") as vm:
            result, line = finished(vm)
        theirs.close()
        reader.join(60)
    assert line == f"net_batch: frames {MANY} reordered 0 lost 0 broken 0"
    counters = result.counters
    assert counters.net_tx_packets + counters.net_tx_drops == MANY
    assert len(numbers) == counters.net_tx_packets
    assert all(a < b for a, b in pairwise(numbers))


@by
def test_frames_that_come_in_bursts_go_back_in_order(guest: Guest, by: str) -> None:
    """Forty frames wait when the guest looks. The library's queue holds 32 of them, the test's own
    batch 64.
    """
    rounds, burst = 20 if IN_TEST_VM else 500, 40
    with wire() as (ours, theirs):
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        with started(guest("net_batch"), NetFd(theirs.fileno()), "echo", f"--by={by}") as vm:
            ours.settimeout(60)
            for turn in range(rounds):
                for i in range(burst):
                    ours.send(frame(turn * burst + i))
                for i in range(burst):
                    assert ours.recv(2048) == frame(turn * burst + i)
            ours.send(QUIT)
            result, line = finished(vm)
    assert line == f"net_batch: frames {rounds * burst} reordered 0 lost 0 broken 0"
    assert result.counters.net_tx_packets == rounds * burst


def test_one_frame_at_a_time_is_answered_at_once(guest: Guest) -> None:
    """No frame is held back when no other waits: one hypercall for the answer, one for the wait for
    the next frame.
    """
    with (
        wire() as (ours, theirs),
        started(guest("net_batch"), NetFd(theirs.fileno()), "echo", "--by=calls") as vm,
    ):
        ours.settimeout(60)
        for number in range(200):
            ours.send(frame(number, 60 + number))
            assert ours.recv(2048) == frame(number, 60 + number)
        ours.send(QUIT)
        result, _ = finished(vm)
    calls = result.counters.hypercalls
    assert calls["net_write"] == 200 and calls["net_read"] == calls["poll"] == 0
    assert result.counters.net_batches <= 200 + 5


def test_a_reader_that_never_reads_costs_frames_and_not_the_guest(guest: Guest) -> None:
    with (
        wire() as (_, theirs),
        started(guest("net_batch"), NetFd(theirs.fileno()), "tx", "--count=3000", "--size=1514") as vm,
    ):
        result, line = finished(vm)
    assert line == "net_batch: frames 3000 reordered 0 lost 0 broken 0"
    counters = result.counters
    assert counters.net_tx_drops > 0 and counters.net_tx_packets + counters.net_tx_drops == 3000


@by
def test_a_stop_under_load(guest: Guest, by: str) -> None:
    with (
        wire() as (ours, theirs),
        started(guest("net_batch"), NetFd(theirs.fileno()), "echo", f"--by={by}") as vm,
    ):
        ours.setblocking(False)
        for number in range(2000):
            if select.select([], [ours], [], 0.1)[1]:
                ours.send(frame(number))
            if number == 1500:
                vm.stop()
            if not still_runs(vm, 0):
                break
            try:
                ours.recv(2048)
            except BlockingIOError:
                continue
        vm.stop()
        result = vm.wait(120)
    assert result.reason == "stopped"


def test_a_stop_while_a_batch_waits(guest: Guest) -> None:
    with wire() as (ours, theirs), started(guest("net_batch"), NetFd(theirs.fileno()), "echo") as vm:
        ours.settimeout(60)
        ours.send(frame(0))
        assert ours.recv(2048) == frame(0)
        vm.stop()
        result = vm.wait(120)
    assert result.reason == "stopped"


@pytest.mark.tap
@by
def test_a_tap_that_goes_down_and_up_under_load(guest: Guest, tap: TapInterface, by: str) -> None:
    with started(guest("net_batch"), Tap(tap.name), "echo", f"--by={by}") as vm:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as sender:
            sender.bind((tap.name, 0x88B5))
            number = 0
            for _ in range(5):
                for _ in range(200):
                    with suppress(OSError):  # no space, or the interface is down at that moment
                        sender.send(frame(number))
                    number += 1
                tap.down()
                tap.up()
            quit_by = 200
            while quit_by and still_runs(vm, 0.05):
                quit_by -= 1
                with suppress(OSError):
                    sender.send(QUIT)
        result, line = finished(vm)
    words = line.split()
    assert words[words.index("reordered") + 1] == words[words.index("broken") + 1] == "0"
    assert result.counters.net_rx_packets > 0


@by
def test_a_tender_without_the_batch_serves_the_same_calls_one_by_one(
    guest: Guest, tmp_path: Path, by: str
) -> None:
    old = tmp_path / "old.elf"
    old.write_bytes(with_note(guest("net_batch"), 1, 1))
    with wire() as (ours, theirs), started(old, NetFd(theirs.fileno()), "echo", f"--by={by}") as vm:
        ours.settimeout(60)
        for number in range(300):
            ours.send(frame(number, 60 + number))
            assert ours.recv(2048) == frame(number, 60 + number)
        ours.send(QUIT)
        result, line = finished(vm)
    assert line == "net_batch: frames 300 reordered 0 lost 0 broken 0"
    assert result.counters.net_batches == 0 and result.counters.hypercalls["net_write"] == 300
