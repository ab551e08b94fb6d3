"""Floods over a real TAP, on each path of frames. Every frame carries its number and a product of it.
The frames that did not arrive are those that the kernel reports as dropped for lack of space. None
is changed, reordered, or lost uncounted.

The host's end is in C (tests/native/net_wire.c), so that the flood does not wait for it.
"""

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import BUILD
from support import Guest, TapInterface, ip, still_runs, with_note

from tender import ExitReason, Image, NetFd, NetRingLike, Tap, Vm, VmConfig
from tender.result import VmResult

IN_TEST_VM = bool(os.environ.get("KVMBOX"))
MANY = int(os.environ.get("TENDER_FLOOD", 3_000 if IN_TEST_VM else 1_000_000))
"""A million where a processor runs the guest. In the test VM a program is that processor. TENDER_FLOOD sets another."""

LIMIT = 1500
ENDLESS = 1 << 40
pytestmark = pytest.mark.tap
MAC = "02:00:00:00:00:02"
SIZE = 64
PATIENT, HASTY = 400, 0
"""How many frames the host's sender lets wait in the TAP's queue, which has space for 1000; 0: it does not look."""


class Way(NamedTuple):
    """How the guest moves frames: the features it asks for, the library calls it makes, and its
    network ring.
    """

    features: int
    by: str
    net_ring: NetRingLike = "off"


WAYS = {
    "call": Way(1, "calls"),
    "queue": Way(5, "calls"),
    "batch": Way(5, "submit"),
    "offload": Way(13, "submit"),  # a header before each frame
}
RINGS = {"worker": Way(1, "calls", "on"), "inline": Way(1, "calls", "inline")}


class Wire:
    """A net_wire process, whose output is numbers by name."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def numbers(self) -> dict[str, int]:
        return numbers(self.line())

    def ended(self) -> dict[str, int]:
        """Ends a receiver: it takes what is queued, and reports what there was."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.numbers()


def numbers(line: str) -> dict[str, int]:
    words = line.split()
    return {name: int(value) for name, value in zip(words[::2], words[1::2], strict=True)}


@contextmanager
def wire(*words: object) -> Iterator[Wire]:
    command = [str(BUILD / "tests" / "native" / "net_wire"), *map(str, words)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield Wire(process)
        finally:
            process.kill()


@contextmanager
def receiver(*words: object) -> Iterator[Wire]:
    with wire(*words) as made:
        assert made.line() == "ready"
        yield made


@pytest.fixture
def load(guest: Guest, tap: TapInterface, tmp_path: Path) -> "Load":
    tap.be_quiet()
    return Load(guest, tap, tmp_path)


class Load:
    """A guest under load on a TAP; how it ended, and what the kernel dropped."""

    def __init__(self, guest: Guest, tap: TapInterface, directory: Path) -> None:
        self._guest = guest
        self.tap = tap
        self._directory = directory
        self._said: list[bytes] = []

    @contextmanager
    def running(self, name: str, way: Way, *args: str, net: NetFd | None = None) -> Iterator[Vm]:
        """A running guest that has printed its first line."""
        path = self._directory / f"{name}.elf"
        path.write_bytes(with_note(self._guest(name), 1, way.features))
        begun = threading.Event()

        def hear(data: bytes) -> None:
            self._said.append(data)
            begun.set()

        config = VmConfig(mem=16, args=args, net=net or Tap(self.tap.name, mac=MAC), net_ring=way.net_ring)
        with Image.open(path) as image, Vm(image, config, console=hear) as vm:
            vm.start(timeout=LIMIT)
            assert begun.wait(60)
            if net is None:
                self.tap.carries()
            yield vm

    def ended(self, vm: Vm) -> tuple[VmResult, dict[str, int]]:
        result = vm.wait(LIMIT)
        said = b"".join(self._said).decode()
        assert result is not None and result.ok, (result, said)
        return result, numbers(said.splitlines()[-1].split(": ")[1])

    def dropped(self) -> int:
        """Returns how many of the guest's frames the host's stack has dropped."""
        return int(Path(f"/sys/class/net/{self.tap.name}/statistics/rx_dropped").read_text())


def assert_came_by(way: Way, result: VmResult) -> None:
    """Checks that the frames took the path that `way` names."""
    counters = result.counters
    assert (counters.net_batches > 0) == (way.features > 1)
    assert (counters.net_ring_packets > 0) == (way.net_ring != "off")


def send_in(load: Load, way: Way, window: int, count: int) -> int:
    """Returns how many frames the guest did not get, which is exactly what the kernel had no space
    for.

    Our library reads through the ring only while its worker is awake. The guest `ring` reads only
    through it.
    """
    words = ("net_batch", way, "rx", f"--by={way.by}") if way.net_ring == "off" else ("ring", way, "take")
    with load.running(*words) as vm:
        with wire("send", load.tap.name, count, SIZE, window) as sender:
            sent = sender.numbers()
            result, seen = load.ended(vm)
    assert sent["sent"] == count
    assert seen["reordered"] == seen["broken"] == 0
    lost = count - seen["frames"]
    assert lost == sent["refused"] + sent["dropped"]
    counters = result.counters
    assert counters.net_rx_errors == counters.net_rx_drops == 0
    assert counters.net_rx_packets > seen["frames"]
    assert_came_by(way, result)
    return lost


def flood_in(load: Load, way: Way, count: int) -> None:
    assert send_in(load, way, PATIENT, count) == 0


def overflow(load: Load, way: Way, count: int) -> None:
    send_in(load, way, HASTY, count)


def flood_out(load: Load, way: Way, count: int) -> None:
    with receiver("receive", load.tap.name) as end:
        with load.running(
            "net_batch", way, "tx", f"--by={way.by}", f"--count={count}", f"--size={SIZE}"
        ) as vm:
            result, seen = load.ended(vm)
        found = end.ended()
    assert seen == {"frames": count, "reordered": 0, "lost": 0, "broken": 0}
    counters = result.counters
    assert counters.net_tx_packets + counters.net_tx_drops == count
    assert found["reordered"] == found["broken"] == 0
    assert found["received"] + found["dropped"] + load.dropped() == counters.net_tx_packets
    assert found["received"] > count // 2
    assert_came_by(way, result)


def flood_both(load: Load, way: Way, count: int) -> None:
    """Each frame that comes in goes back out."""
    with receiver("receive", load.tap.name) as end:
        with load.running("net_batch", way, "echo", f"--by={way.by}") as vm:
            with wire("send", load.tap.name, count, SIZE, PATIENT) as sender:
                sent = sender.numbers()
                result, seen = load.ended(vm)
        found = end.ended()
    assert sent == {"sent": count, "refused": 0, "dropped": 0}
    assert seen == {"frames": count, "reordered": 0, "lost": 0, "broken": 0}
    counters = result.counters
    assert counters.net_tx_packets + counters.net_tx_drops == count
    assert found["reordered"] == found["broken"] == 0
    assert found["received"] + found["dropped"] + load.dropped() == counters.net_tx_packets
    assert_came_by(way, result)


def late_reader(load: Load, way: Way, count: int) -> None:
    """Nobody reads until the guest has ended, so the wire is full."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        words = ("tx", f"--by={way.by}", f"--count={count}", "--size=1514")
        with load.running("net_batch", way, *words, net=NetFd(theirs.fileno(), mac=MAC)) as vm:
            result, seen = load.ended(vm)
        ours.setblocking(False)
        got = []
        with suppress(BlockingIOError):
            while True:
                got.append(int.from_bytes(ours.recv(2048)[14:22], "little"))
    assert seen == {"frames": count, "reordered": 0, "lost": 0, "broken": 0}
    counters = result.counters
    assert counters.net_tx_drops > 0 and counters.net_tx_packets + counters.net_tx_drops == count
    assert len(got) == counters.net_tx_packets and got == sorted(set(got))


def wait_for_frames(vm: Vm, more: int) -> None:
    beyond = vm.counters.net_rx_packets + more
    while vm.counters.net_rx_packets < beyond:
        assert still_runs(vm, 0.005), "the guest has ended"


def stopped_under_load(load: Load, way: Way) -> None:
    with (
        load.running("net_batch", way, "echo", f"--by={way.by}") as vm,
        wire("send", load.tap.name, ENDLESS, SIZE, HASTY),
    ):
        wait_for_frames(vm, 300)
        vm.stop()
        result = vm.wait(120)
    assert result.reason == ExitReason.STOPPED
    assert_came_by(way, result)


def down_and_up(load: Load, way: Way) -> None:
    with receiver("receive", load.tap.name) as end:
        with load.running("net_batch", way, "echo", f"--by={way.by}") as vm:
            with wire("send", load.tap.name, ENDLESS, SIZE, HASTY):
                for _ in range(2 if IN_TEST_VM else 5):
                    wait_for_frames(vm, 100)
                    load.tap.down()
                    load.tap.up()
                    load.tap.carries()
                wait_for_frames(vm, 100)
            with wire("send", load.tap.name, 0, SIZE, HASTY):  # this sends only the frame that ends the guest
                result, seen = load.ended(vm)
        found = end.ended()
    assert seen["reordered"] == seen["broken"] == found["reordered"] == found["broken"] == 0
    counters = result.counters
    assert counters.net_tx_packets + counters.net_tx_drops == seen["frames"]
    assert 0 < found["received"] <= counters.net_tx_packets
    assert_came_by(way, result)


ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


@pytest.mark.backends
@ways
def test_a_flood_into_the_guest_loses_nothing(load: Load, way: Way) -> None:
    flood_in(load, way, MANY)


@pytest.mark.backends
@ways
def test_a_queue_that_overflows_loses_what_the_interface_counts(load: Load, way: Way) -> None:
    overflow(load, way, MANY // 10)


@pytest.mark.backends
@ways
def test_a_flood_out_of_the_guest_arrives_except_for_what_is_counted(load: Load, way: Way) -> None:
    flood_out(load, way, MANY)


@pytest.mark.backends
@ways
def test_floods_both_ways_at_once(load: Load, way: Way) -> None:
    flood_both(load, way, MANY // 10)


@pytest.mark.backends
@ways
def test_a_wire_that_is_full_costs_frames_that_are_counted(load: Load, way: Way) -> None:
    late_reader(load, way, 3000)


@pytest.mark.backends
@ways
def test_a_stop_ends_a_guest_in_a_flood(load: Load, way: Way) -> None:
    stopped_under_load(load, way)


@pytest.mark.backends
@ways
def test_an_interface_that_goes_down_and_up_in_a_flood_costs_frames_only(load: Load, way: Way) -> None:
    down_and_up(load, way)


@pytest.mark.kvm
@pytest.mark.parametrize("way", RINGS.values(), ids=RINGS.keys())
@pytest.mark.parametrize(
    ("flood", "part"), [(flood_in, 1), (overflow, 10), (flood_out, 1), (flood_both, 10), (late_reader, 1)]
)
def test_floods_by_the_ring(load: Load, way: Way, flood: Callable[[Load, Way, int], None], part: int) -> None:
    flood(load, way, MANY // part)


@pytest.mark.kvm
@pytest.mark.parametrize("way", RINGS.values(), ids=RINGS.keys())
@pytest.mark.parametrize("case", [stopped_under_load, down_and_up])
def test_what_ends_or_breaks_a_flood_by_the_ring(
    load: Load, way: Way, case: Callable[[Load, Way], None]
) -> None:
    case(load, way)


# ---- Frames that stand for many packets

EACH, PER_FRAME = 1400, 44


def neighbour(load: Load) -> str:
    """Makes the host know the guest's MAC. Returns the host's MAC."""
    ip("neigh", "replace", "10.0.0.2", "lladdr", MAC, "dev", load.tap.name, "nud", "permanent")
    return Path(f"/sys/class/net/{load.tap.name}/address").read_text().strip()


@pytest.mark.backends
@pytest.mark.uso
def test_a_flood_out_whose_frames_the_host_cuts(load: Load) -> None:
    frames = -(-MANY // PER_FRAME)
    words = (f"--mac={neighbour(load)}", f"--frames={frames}", f"--size={EACH}", f"--count={PER_FRAME}")
    with receiver("udp-receive", load.tap.address) as end:
        with load.running("net_offload", WAYS["offload"], "stream", *words) as vm:
            result, seen = load.ended(vm)
        found = end.ended()
    datagrams = frames * PER_FRAME
    assert seen == {"datagrams": datagrams, "reordered": 0, "lost": 0, "broken": 0, "frames": frames}
    assert (result.counters.net_tx_packets, result.counters.net_tx_drops) == (frames, 0)
    assert found["reordered"] == found["broken"] == 0
    assert found["received"] + found["dropped"] == datagrams and found["received"] > 0


@pytest.mark.backends
@pytest.mark.uso
def test_a_flood_in_whose_datagrams_come_as_one_frame(load: Load) -> None:
    neighbour(load)
    with load.running("net_offload", WAYS["offload"], "sink") as vm:
        with wire("udp-send", f"{load.tap.name}=10.0.0.2", MANY, EACH, PER_FRAME, PATIENT // 4) as sender:
            sent = sender.numbers()
            result, seen = load.ended(vm)
    assert sent == {"sent": MANY, "refused": 0, "dropped": 0}
    assert (seen["datagrams"], seen["reordered"], seen["lost"], seen["broken"]) == (MANY, 0, 0, 0)
    assert seen["frames"] < MANY // PER_FRAME + 100
    assert result.counters.net_rx_errors == result.counters.net_rx_drops == 0
