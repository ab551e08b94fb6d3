"""The network ring, used by a guest that implements it without our library (tests/guests/ring), and served
in both ways.

With "worker" a thread serves the ring and is woken at each kick; with "inline" the vCPU's own thread does.
The guest must see the same in both. test_ring.c tests when "auto", which depends on time, wakes a worker.
"""

import os
import resource
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from support import Guest, TapInterface, still_runs, with_note

from tender import CAPTURE, ExitReason, Image, NetFd, NetRing, Tap, Vm, VmConfig, VmResult

pytestmark = pytest.mark.kvm
MIB = 1 << 20
SO_SNDBUFFORCE = 32  # asm-generic/socket.h
both = pytest.mark.parametrize("net_ring", ["on", "inline"], ids=["worker", "inline"])


@contextmanager
def wire() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Our end of a network, and the guest's end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(300)
    with ours, theirs:
        yield ours, theirs


def boot(
    path: Path, *args: str, net: "NetFd | Tap", net_ring: NetRing, mem: int = 16, timeout: float = 300
) -> VmResult:
    with Image.open(path) as image:
        config = VmConfig(mem=mem, args=args, net=net, net_ring=net_ring)
        with Vm(image, config, console=CAPTURE, backend="kvm") as vm:
            return vm.run(timeout)


def text(result: VmResult) -> str:
    assert result.console is not None
    return result.console.decode()


def workers() -> int:
    """Returns the number of threads of this process that serve a ring."""
    found = 0
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):
            found += (task / "comm").read_text() == "tender-ring\n"
    return found


def stable_descriptors() -> int:
    """Returns the number of descriptors after it has not changed for half a second: separate threads close
    the VMs."""
    me = psutil.Process()
    count, since = me.num_fds(), time.monotonic()
    while time.monotonic() < since + 0.5:
        time.sleep(0.01)
        now = me.num_fds()
        if now != count:
            count, since = now, time.monotonic()
    return count


def assert_workers(count: int) -> None:
    """Waits a while for this number: a new thread sets its own name, and the kernel removes a joined thread
    from /proc a little later."""
    deadline = time.monotonic() + 120
    while workers() != count and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert workers() == count


def assert_no_worker_is_left() -> None:
    assert_workers(0)


def numbers(ours: socket.socket) -> list[int]:
    """Returns the numbers of the frames that have arrived."""
    got = []
    ours.setblocking(False)
    try:
        while True:
            got.append(struct.unpack_from("<Q", ours.recv(2048), 14)[0])
    except BlockingIOError:
        return got


@both
def test_the_ring_is_zero_and_follows_the_guests_memory(guest: Guest, net_ring: NetRing) -> None:
    with wire() as (_, theirs):
        result = boot(guest("ring"), "layout", net=NetFd(theirs.fileno()), net_ring=net_ring)
    assert text(result) == f"ring at {14 * MIB:#x} memory {14 * MIB:#x} kick 1 words 0\n"


@both
def test_a_read_is_answered_immediately_when_no_frame_waits(guest: Guest, net_ring: NetRing) -> None:
    with wire() as (_, theirs):
        result = boot(guest("ring"), "again", net=NetFd(theirs.fileno()), net_ring=net_ring)
    assert text(result) == "read ret 1 len 0 id 77\n"


@both
def test_bad_handles_and_unknown_operations_are_skipped_but_a_read_is_answered(
    guest: Guest, net_ring: NetRing
) -> None:
    with wire() as (ours, theirs):
        result = boot(guest("ring"), "refused", net=NetFd(theirs.fileno()), net_ring=net_ring)
        assert numbers(ours) == [1]
    assert text(result) == "refused: ret 2 id 7, heads 15 1\n"
    assert (result.counters.net_tx_packets, result.counters.net_tx_drops) == (1, 0)


@both
def test_frames_come_back_unchanged_and_in_order(guest: Guest, net_ring: NetRing) -> None:
    with wire() as (ours, theirs), Image.open(guest("ring")) as image:
        config = VmConfig(mem=16, args=("echo",), net=NetFd(theirs.fileno()), net_ring=net_ring)
        with Vm(image, config, console=CAPTURE, backend="kvm") as vm:
            vm.start(timeout=300)
            for size in (18, 60, 1514) * 20:
                frame = bytes(14) + struct.pack("<I", size) * 375
                ours.send(frame[:size])
                assert ours.recv(2048) == frame[:size]
            ours.send(bytes(14) + b"QUIT")
            result = vm.wait()
    assert text(result) == "echo: 61 frames\n"
    counters = result.counters
    assert (counters.net_rx_packets, counters.net_tx_packets, counters.net_ring_packets) == (61, 60, 121)
    assert counters.hypercalls["net_read"] == counters.hypercalls["net_write"] == 0


@both
def test_frames_that_arrive_together_come_back_unchanged_and_in_order(
    guest: Guest, net_ring: NetRing
) -> None:
    """The guest has one buffer. It reads the next frame into the buffer as soon as it has posted the one
    before."""
    with wire() as (ours, theirs), Image.open(guest("ring")) as image:
        config = VmConfig(mem=16, args=("echo",), net=NetFd(theirs.fileno()), net_ring=net_ring)
        with Vm(image, config, console=CAPTURE, backend="kvm") as vm:
            vm.start(timeout=300)
            for first in range(0, 800, 8):
                frames = [bytes(14) + struct.pack("<I", first + n) * (1 + 46 * n) for n in range(8)]
                for frame in frames:
                    ours.send(frame)
                assert [ours.recv(2048) for _ in frames] == frames
            ours.send(bytes(14) + b"QUIT")
            result = vm.wait()
    assert text(result) == "echo: 801 frames\n"
    assert (result.counters.net_rx_packets, result.counters.net_tx_packets) == (801, 800)


@both
def test_a_full_ring_loses_no_frame_that_the_wire_accepts(guest: Guest, net_ring: NetRing) -> None:
    got: list[int] = []

    def read(ours: socket.socket) -> None:
        while frame := ours.recv(2048):
            got.append(struct.unpack_from("<Q", frame, 14)[0])

    with wire() as (ours, theirs):
        reader = threading.Thread(target=read, args=(ours,))
        reader.start()
        result = boot(guest("ring"), "flood", "--count=5000", net=NetFd(theirs.fileno()), net_ring=net_ring)
        theirs.close()
        reader.join(120)
    assert result.ok and text(result) == "flood: 5000 frames\n"
    assert got == sorted(got)
    assert len(got) == result.counters.net_tx_packets
    assert result.counters.net_tx_packets + result.counters.net_tx_drops == 5000


@both
def test_frames_posted_before_the_halt_are_sent(guest: Guest, net_ring: NetRing) -> None:
    with wire() as (ours, theirs):
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        result = boot(guest("ring"), "drain", "--count=100", net=NetFd(theirs.fileno()), net_ring=net_ring)
        assert numbers(ours) == list(range(100))
    assert result.ok and result.counters.net_ring_kicks == 0


@pytest.mark.parametrize("case", ["send-bad", "read-bad", "drain-bad"])
@both
def test_a_buffer_outside_of_the_guests_memory_ends_the_run(
    guest: Guest, net_ring: NetRing, case: str
) -> None:
    """This also holds for an entry that the guest posts before it halts."""
    with wire() as (_, theirs):
        result = boot(guest("ring"), case, net=NetFd(theirs.fileno()), net_ring=net_ring)
    call = "net_read" if case == "read-bad" else "net_write"
    assert result.reason == ExitReason.BAD_ACCESS
    assert result.message.startswith(f"Invalid guest access: gpa={14 * MIB:#x}, sz=60 (hypercall {call}, ")


@both
def test_a_kick_without_entries_does_nothing(guest: Guest, net_ring: NetRing) -> None:
    with wire() as (_, theirs):
        result = boot(guest("ring"), "bare", "--count=500", net=NetFd(theirs.fileno()), net_ring=net_ring)
    assert result.ok and text(result) == "bare: 500 kicks\n"
    assert (result.counters.exits, result.counters.net_ring_kicks) == (502, 500)


@both
def test_a_kick_of_another_width_is_a_bad_port_access(guest: Guest, net_ring: NetRing) -> None:
    with wire() as (_, theirs):
        result = boot(guest("ring"), "narrow", net=NetFd(theirs.fileno()), net_ring=net_ring)
    assert result.reason == ExitReason.BAD_PORT and "port=0x600" in result.message


@both
def test_false_indices_in_the_ring_do_no_harm(guest: Guest, net_ring: NetRing) -> None:
    with wire() as (_, theirs):
        result = boot(guest("ring"), "lies", "--count=200", net=NetFd(theirs.fileno()), net_ring=net_ring)
    assert result.ok and text(result) == "lies: survived\n"


@both
@pytest.mark.parametrize("case", ["flood", "lies"])
def test_a_stop_ends_a_guest_that_floods_the_ring(guest: Guest, net_ring: NetRing, case: str) -> None:
    with wire() as (_, theirs), Image.open(guest("ring")) as image:
        count = f"--count={1 << 40 if case == 'lies' else 0}"
        config = VmConfig(mem=16, args=(case, count), net=NetFd(theirs.fileno()), net_ring=net_ring)
        with Vm(image, config, console=CAPTURE, backend="kvm") as vm:
            vm.start(timeout=300)
            while not vm.counters.net_tx_packets + vm.counters.net_tx_drops > 300:
                threading.Event().wait(0.01)
            vm.stop()
            result = vm.wait(120)
    assert result.reason == ExitReason.STOPPED


@pytest.mark.parametrize(
    ("net_ring", "mem", "offered"),
    [
        ("off", 16, False),
        ("on", 16, True),
        ("on", 6, True),
        ("on", 4, False),  # the image needs 2 MiB, and the ring needs 2 MiB
        ("inline", 4, False),
        ("on", 4096, True),
        ("off", 4096, False),
    ],
)
def test_the_ring_is_offered_if_2_mib_remain_and_is_taken_from_mem(
    guest: Guest, net_ring: NetRing, mem: int, offered: bool
) -> None:
    with wire() as (_, theirs):
        result = boot(guest("ring"), "none", net=NetFd(theirs.fileno()), net_ring=net_ring, mem=mem)
    end = f"{(mem - 2 if offered else mem) * MIB:#x}"
    assert text(result) == f"features {int(offered)} ring {end if offered else 0} memory {end}\n"


@pytest.mark.tap
@both
def test_an_interface_that_goes_down_and_up_under_load_only_loses_frames(
    guest: Guest, tap: TapInterface, net_ring: NetRing
) -> None:
    with Image.open(guest("ring")) as image:
        config = VmConfig(mem=16, args=("flood",), net=Tap(tap.name), net_ring=net_ring)
        with Vm(image, config, console=CAPTURE, backend="kvm") as vm:
            vm.start(timeout=300)

            def wait_for(name: str) -> None:
                beyond = getattr(vm.counters, name) + 200
                while getattr(vm.counters, name) < beyond:
                    assert still_runs(vm, 0.01)

            wait_for("net_tx_packets")
            tap.down()
            wait_for("net_tx_drops")
            tap.up()
            wait_for("net_tx_packets")
            vm.stop()
            result = vm.wait(120)
    assert result.reason == ExitReason.STOPPED


@pytest.mark.parametrize(
    ("cpus", "words", "offered"),
    [("one", [], False), ("all", ["--no-net-ring"], False), ("all", [], None)],
)
def test_the_command_offers_the_ring_with_two_processors(
    guest: Guest, tender_cmd: list[str], cpus: str, words: list[str], offered: bool | None
) -> None:
    mask = os.sched_getaffinity(0)
    if offered is None:
        offered = len(mask) > 1
    with wire() as (_, theirs):
        done = subprocess.run(
            [
                *tender_cmd,
                "--backend=kvm",
                "--mem=64",
                f"--net=@{theirs.fileno()}",
                *words,
                guest("ring"),
                "none",
            ],
            capture_output=True,
            text=True,
            timeout=300,
            pass_fds=[theirs.fileno()],
            preexec_fn=(lambda: os.sched_setaffinity(0, {min(mask)})) if cpus == "one" else None,
        )
    end = f"{(62 if offered else 64) * MIB:#x}"
    assert done.stdout == f"features {int(offered)} ring {end if offered else 0} memory {end}\n", done.stderr


def test_solo5s_command_line_can_switch_off_the_ring(
    guest: Guest, solo5: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    with wire() as (_, theirs):
        words = ["--mem=16", f"--net:service0=@{theirs.fileno()}", "--no-net-ring", guest("ring"), "none"]
        done = solo5(*words, pass_fds=[theirs.fileno()])
    assert done.stdout == f"features 0 ring 0 memory {16 * MIB:#x}\n", done.stderr


def test_a_guest_is_served_even_if_no_worker_can_be_made(guest: Guest) -> None:
    with wire() as (_, theirs), Image.open(guest("ring")) as image:
        config = VmConfig(mem=16, args=("bare", "--count=100"), net=NetFd(theirs.fileno()), net_ring="on")
        with Vm(image, config, console=CAPTURE, backend="kvm") as vm:
            before = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
            try:
                result = vm.run(300)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert result.ok and text(result) == "bare: 100 kicks\n"


def test_eight_simultaneous_vms_have_their_own_workers_and_leave_nothing(guest: Guest) -> None:

    def one(image: Image) -> None:
        with wire() as (_, theirs):
            config = VmConfig(
                mem=16, args=("flood", "--count=300"), net=NetFd(theirs.fileno()), net_ring="on"
            )
            with Vm(image, config, console=CAPTURE, backend="kvm") as vm:
                assert vm.run(300).ok

    with Image.open(guest("ring")) as image:
        one(image)
        before = stable_descriptors()
        threads = [threading.Thread(target=one, args=(image,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
    assert stable_descriptors() == before - 1  # the image's template is closed
    assert_no_worker_is_left()


def test_after_close_no_worker_is_left_of_a_run_that_raised(guest: Guest) -> None:
    def fail(_: bytes) -> None:
        raise RuntimeError("enough")

    descriptors = []
    with wire() as (_, theirs), Image.open(guest("ring")) as image:
        config = VmConfig(mem=16, args=("bare", "--count=5"), net=NetFd(theirs.fileno()), net_ring="on")
        for _ in range(3):  # the first VM's vCPU stays open, and its machine until the second VM is made
            with Vm(image, config, console=fail, backend="kvm") as vm:
                with pytest.raises(RuntimeError, match="enough"):
                    vm.run(300)
                assert_workers(1)
            descriptors.append(stable_descriptors())
        assert descriptors[1] == descriptors[2]
        assert_no_worker_is_left()


# ---- the ring in our guest library


def without_batch(path: Path, tmp_path: Path) -> Path:
    """Returns a copy of the guest at `path` that does not ask for batches: with them it would not use the
    ring."""
    changed = tmp_path / path.name
    changed.write_bytes(with_note(path, 1, 1))
    return changed


@both
def test_the_guest_library_sends_through_the_ring_except_large_frames(
    guest: Guest, tmp_path: Path, net_ring: NetRing
) -> None:
    """Each round sends ten sizes. Frames of up to 2048 bytes go through the ring. The order is kept between
    the two ways."""
    got: list[int] = []

    def read(ours: socket.socket) -> None:
        for _ in range(30):
            got.append(len(ours.recv(1 << 17)))

    with wire() as (ours, theirs):
        # Space for all frames: a frame without space is dropped, and the reader may be late.
        theirs.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 4 << 20)
        reader = threading.Thread(target=read, args=(ours,))
        reader.start()
        net = NetFd(theirs.fileno(), mtu=1500)
        result = boot(without_batch(guest("net_tx"), tmp_path), "--count=3", net=net, net_ring=net_ring)
        theirs.close()
        reader.join(120)
    sizes = [0, 1, 13, 14, 60, 1513, 1514, 1515, 9000, 65535]
    assert result.ok and all(f"size {size} sent 3 ok 3 refused 0\n" in text(result) for size in sizes)
    assert got == [size for size in sizes for _ in range(3)]
    assert result.counters.hypercalls["net_write"] == 2 * 3
    assert result.counters.net_ring_packets == 8 * 3


@both
def test_the_guest_library_waits_for_space_and_loses_no_frame(
    guest: Guest, tmp_path: Path, net_ring: NetRing
) -> None:
    with wire() as (_, theirs):
        words = ("--count=3000", "--size=60")
        result = boot(
            without_batch(guest("net_tx"), tmp_path), *words, net=NetFd(theirs.fileno()), net_ring=net_ring
        )
    assert text(result) == "net_tx: size 60 sent 3000 ok 3000 refused 0\n"
    counters = result.counters
    assert counters.net_tx_packets + counters.net_tx_drops == 3000
    assert counters.hypercalls["net_write"] == 0


def test_the_guest_library_sends_back_what_it_reads_through_the_ring(guest: Guest, tmp_path: Path) -> None:
    with wire() as (ours, theirs), Image.open(without_batch(guest("net_rx_poll"), tmp_path)) as image:
        config = VmConfig(mem=16, net=NetFd(theirs.fileno()), net_ring="on")
        with Vm(image, config, console=CAPTURE, backend="kvm") as vm:
            vm.start(timeout=300)
            for i in range(300):
                frame = bytes(14) + struct.pack("<Q", i) + os.urandom(i)
                ours.send(frame)
                assert ours.recv(2048) == frame
            ours.send(bytes(14) + b"QUIT")
            result = vm.wait()
    assert result.ok
    assert (result.counters.net_rx_packets, result.counters.net_tx_packets) == (301, 300)
    assert result.counters.net_ring_packets >= 300  # a read while the worker sleeps is a hypercall
    assert result.counters.hypercalls["net_write"] == 0
