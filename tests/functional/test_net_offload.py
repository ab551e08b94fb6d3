"""Frames whose checksum, or whose cutting into packets, is left to the other side: over a real TAP, with the host's
own UDP and TCP at the other end."""

import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import pytest
from support import Guest, TapInterface, ip, tap_offload, with_note

from tender import Image, NetFd, Tap, Vm, VmConfig
from tender.cli.run import Stopper
from tender.result import VmResult

pytestmark = [pytest.mark.backends, pytest.mark.tap]
MAC = "02:00:00:00:00:02"
PORT = 7000
ALL = 15
UDP_SEGMENT = 103
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 2, 0x1000, 0x4000


def pattern(count: int) -> bytes:
    return bytes((i * 7 + i // 256) & 255 for i in range(count))


def words(tap: TapInterface, *args: str) -> tuple[str, ...]:
    return (f"--mac={Path(f'/sys/class/net/{tap.name}/address').read_text().strip()}", *args)


@contextmanager
def started(path: Path, net: "Tap | NetFd", *args: str) -> Iterator[tuple[Vm, threading.Event, list[str]]]:
    """Yields the VM, the event of its first line, and what it prints."""
    begun, said = threading.Event(), list[str]()

    def hear(data: bytes) -> None:
        said.append(data.decode())
        begun.set()

    with Image.open(path) as image, Vm(image, VmConfig(mem=16, args=args, net=net), console=hear) as vm:
        vm.start(timeout=60)
        assert begun.wait(120)
        yield vm, begun, said


def ended(vm: Vm, said: list[str]) -> tuple[VmResult, list[str]]:
    result = vm.wait(60)
    assert result.ok, (result, said)
    return result, "".join(said).replace("net_offload: ", "").splitlines()


@contextmanager
def udp(tap: TapInterface) -> Iterator[socket.socket]:
    """The host's socket. The host knows the guest's MAC."""
    ip("neigh", "replace", "10.0.0.2", "lladdr", MAC, "dev", tap.name, "nud", "permanent")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.bind((tap.address, PORT))
        sock.connect(("10.0.0.2", PORT))
        sock.settimeout(120)
        yield sock


@pytest.mark.uso
@pytest.mark.parametrize(("size", "count"), [(1000, 1), (1400, 45), (1472, 2), (500, 120)])
def test_one_frame_out_becomes_many_datagrams(guest: Guest, tap: TapInterface, size: int, count: int) -> None:
    with udp(tap) as sock:
        args = words(tap, "udp", f"--size={size}", f"--count={count}")
        with started(guest("net_offload"), Tap(tap.name, mac=MAC), *args) as (vm, _, said):
            datagrams = [sock.recv(65536) for _ in range(count)]
            result, lines = ended(vm, said)
    assert lines == [f"offload {ALL}", "sent 0"]
    assert b"".join(datagrams) == pattern(size * count) and {len(d) for d in datagrams} == {size}
    assert (result.counters.net_tx_packets, result.counters.net_tx_drops) == (1, 0)
    assert result.counters.net_tx_bytes == 42 + size * count


def test_one_frame_out_becomes_many_tcp_segments(guest: Guest, tap: TapInterface) -> None:
    ip("neigh", "replace", "10.0.0.2", "lladdr", MAC, "dev", tap.name, "nud", "permanent")
    with socket.socket() as listening:
        listening.bind((tap.address, PORT))
        listening.listen()
        listening.settimeout(120)
        args = words(tap, "tcp", "--count=30000")
        with started(guest("net_offload"), Tap(tap.name, mac=MAC), *args) as (vm, _, said):
            connection, _ = listening.accept()
            with connection:
                connection.settimeout(120)
                got = b""
                while len(got) < 30000:
                    got += connection.recv(65536)
                result, lines = ended(vm, said)
    assert lines == [f"offload {tap_offload()}", "sent 0"] and got == pattern(30000)
    assert result.counters.net_tx_packets == 2


@pytest.mark.uso
def test_many_datagrams_come_in_as_one_frame(guest: Guest, tap: TapInterface) -> None:
    data = pattern(45 * 1400)
    with (
        udp(tap) as sock,
        started(guest("net_offload"), Tap(tap.name, mac=MAC), "take", f"--count={len(data)}") as (
            vm,
            _,
            said,
        ),
    ):
        sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1400)
        tap.carries()
        sock.send(data)
        _, lines = ended(vm, said)
    assert lines == [f"offload {ALL}", f"took {len(data)} flags 1 gso 5 size 1400"]


def test_a_datagram_comes_in_with_a_partial_checksum(guest: Guest, tap: TapInterface) -> None:
    data = pattern(1000)
    with udp(tap) as sock, started(guest("net_offload"), Tap(tap.name, mac=MAC), "take", "--count=1000") as (
        vm, _, said
    ):  # fmt: skip
        tap.carries()
        sock.send(data)
        _, lines = ended(vm, said)
    assert lines == [f"offload {tap_offload()}", "took 1000 flags 1 gso 0 size 0"]


@pytest.mark.uso
def test_a_plain_read_gets_complete_packets_and_nothing_else(guest: Guest, tap: TapInterface) -> None:
    """Checksums are completed, of odd lengths too. A frame that stands for many packets is dropped and
    counted.
    """
    data, sizes = pattern(3301), (1001, 1300, 1000)
    with (
        udp(tap) as sock,
        started(guest("net_offload"), Tap(tap.name, mac=MAC), "read", f"--count={len(data)}") as (
            vm,
            _,
            said,
        ),
    ):
        at = 0
        tap.carries()
        for size in sizes:
            sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1400)
            sock.send(bytes(14000))
            sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 0)
            sock.send(data[at : at + size])
            at += size
        result, lines = ended(vm, said)
    assert lines == [f"offload {ALL}", f"read {len(data)}"]
    assert result.counters.net_rx_drops == 3 and result.counters.net_rx_errors == 0


@pytest.mark.uso
def test_false_headers_are_refused_and_the_next_frame_is_sent(guest: Guest, tap: TapInterface) -> None:
    with udp(tap) as sock:
        with started(guest("net_offload"), Tap(tap.name, mac=MAC), *words(tap, "lies")) as (vm, _, said):
            result, lines = ended(vm, said)
        got = [sock.recv(65536) for _ in range(3)]
    assert lines == [f"offload {ALL}", "refused 16 of 16", "good 0"]
    assert len(b"".join(got)) >= 1000
    assert result.counters.net_tx_packets >= 1


@pytest.mark.uso
@pytest.mark.parametrize("features", [1, 5], ids=["calls", "batch"])
def test_a_guest_that_does_not_ask_for_the_offload_finds_none_left_behind(
    guest: Guest, tap: TapInterface, tmp_path: Path, features: int
) -> None:
    """Offloads stay with an interface. The next guest gets complete packets all the same."""
    plain = tmp_path / "plain.elf"
    plain.write_bytes(with_note(guest("net_offload"), 1, features))
    data = pattern(2800)
    with udp(tap) as sock:
        leave_offload_on(tap).close()
        with started(plain, Tap(tap.name, mac=MAC), "take", f"--count={len(data)}") as (vm, _, said):
            sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1400)
            tap.carries()
            sock.send(data)
            result, lines = ended(vm, said)
    assert lines == ["offload 0", *["took 1400 flags 0 gso 0 size 0"] * 2]
    assert result.counters.net_rx_drops == 0


@pytest.mark.uso
@pytest.mark.parametrize("features", [1, 13], ids=["calls", "offload"])
def test_an_inherited_tap_with_a_header_serves_either_guest(
    guest: Guest, tap: TapInterface, tmp_path: Path, features: int
) -> None:
    path = tmp_path / "either.elf"
    path.write_bytes(with_note(guest("net_offload"), 1, features))
    data, sizes = pattern(2800), 1400
    with udp(tap) as sock, leave_offload_on(tap) as tun:
        net = NetFd(tun.fileno(), mac=MAC)
        with started(path, net, "take", f"--count={len(data)}") as (vm, _, said):
            sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, sizes)
            tap.carries()
            sock.send(data)
            _, lines = ended(vm, said)
        with started(path, net, *words(tap, "udp", "--size=900")) as (vm, _, said):
            if features == 13:
                assert sock.recv(2048) == pattern(900)
            ended(vm, said)
    plain = ["offload 0", *["took 1400 flags 0 gso 0 size 0"] * 2]
    assert lines == ([f"offload {ALL}", "took 2800 flags 1 gso 5 size 1400"] if features == 13 else plain)


@pytest.mark.uso
def test_an_offload_ends_with_its_guest(guest: Guest, tap: TapInterface) -> None:
    """A tender that knows nothing of net headers may come next."""
    with udp(tap) as sock:
        with started(guest("net_offload"), Tap(tap.name, mac=MAC), "take", "--count=1") as (vm, _, said):
            tap.carries()
            sock.send(pattern(1))
            ended(vm, said)
        with open("/dev/net/tun", "r+b", buffering=0) as tun:
            os.set_blocking(tun.fileno(), False)
            request = struct.pack("16sH22x", tap.name.encode(), IFF_TAP | IFF_NO_PI)
            fcntl.ioctl(tun, TUNSETIFF, request)
            sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1400)
            tap.carries()
            sock.send(bytes(2800))
            sizes = []
            while frame := tun.read(65536):
                if frame[23] == socket.IPPROTO_UDP and frame[12:14] == b"\x08\0":
                    sizes.append(len(frame))
    assert sizes == [1442, 1442]


@pytest.mark.parametrize("features", [1, 5, 13], ids=["calls", "batch", "offload"])
def test_a_frame_that_needs_an_offload_is_refused_where_there_is_none(
    guest: Guest, tmp_path: Path, features: int
) -> None:
    """Without a TAP, without a batch or without the granted feature the frame would go out unfinished."""
    path = tmp_path / "asks.elf"
    path.write_bytes(with_note(guest("net_offload"), 1, features))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, started(path, NetFd(theirs.fileno()), "udp") as (vm, _, said):
        _, lines = ended(vm, said)
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.recv(1)
    assert lines == ["offload 0", "sent 2"]


def leave_offload_on(tap: TapInterface) -> FileIO:
    """Returns a TAP whose owner has a net header and every offload."""
    tun = FileIO("/dev/net/tun", "r+")
    request = struct.pack("16sH22x", tap.name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
    fcntl.ioctl(tun, TUNSETIFF, request)
    fcntl.ioctl(tun, TUNSETOFFLOAD, 0x67)
    return tun


# ---- a second signal kills the command

SIOCETHTOOL, ETHTOOL_GTSO = 0x8946, 0x1E  # linux/sockios.h, linux/ethtool.h


def is_offloaded(tap: TapInterface) -> bool:
    """Returns whether the kernel leaves segments to the process that reads the interface."""
    value = ctypes.create_string_buffer(struct.pack("II", ETHTOOL_GTSO, 2))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCETHTOOL, struct.pack("16sQ16x", tap.name.encode(), ctypes.addressof(value)))
    return bool(struct.unpack("II", value.raw[:8])[1])


def wait_until_nobody_has(tap: TapInterface) -> None:
    carrier, deadline = Path(f"/sys/class/net/{tap.name}/carrier"), time.monotonic() + 30
    while carrier.read_text().strip() != "0":
        assert time.monotonic() < deadline, "somebody holds the interface"
        time.sleep(0.001)


@pytest.mark.parametrize(
    "front", [["--net={}"], ["solo5-hvt", "--net:service0={}"]], ids=["tender", "solo5-hvt"]
)
def test_a_second_signal_leaves_no_offload_behind(
    guest: Guest, tap: TapInterface, tender_cmd: list[str], front: list[str]
) -> None:
    """The second signal may come at any moment, which cannot be chosen. So it comes many times, and
    more often if every command ended before it.
    """
    command = [*tender_cmd, *(word.format(tap.name) for word in front), "--mem=16", str(guest("net_offload"))]
    killed = 0
    for tried in range(64):
        if tried >= 16 and killed:
            break
        with subprocess.Popen(
            [*command, "take"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as running:
            assert running.stdout is not None
            first = running.stdout.readline()
            assert is_offloaded(tap)
            while running.poll() is None:
                running.send_signal(signal.SIGTERM)
        assert first == f"net_offload: offload {tap_offload()}\n".encode()
        killed += running.returncode == -signal.SIGTERM
        assert running.returncode in (1, -signal.SIGTERM)
        wait_until_nobody_has(tap)  # a sandbox whose command was killed ends a moment later
        assert not is_offloaded(tap)


def test_pythons_launcher_switches_the_offload_off_at_the_first_signal(
    guest: Guest, tap: TapInterface, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At that signal the VM is not closed yet, and it may never be."""
    monkeypatch.setattr("_signal.signal", lambda *_: None)  # the handlers of this process stay
    stopper = Stopper()
    with started(guest("net_offload"), Tap(tap.name, mac=MAC), "take") as (vm, _, _):
        stopper.vm = vm
        assert is_offloaded(tap)
        stopper(signal.SIGTERM, None)
        assert not is_offloaded(tap)
        result = vm.wait(60)
    assert result.reason == "stopped"
