"""Frames around the limits of what a guest can take, on each path of frames over a TAP and over a
socket: whole, or dropped and counted; never cut.
"""

import socket
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from support import Guest, TapInterface, with_note

from tender import CAPTURE, Image, NetFd, NetRingLike, Tap, Vm, VmConfig
from tender.config import NetDevice

MTU = 1500
VLAN = b"\x81\x00\x00\x05"
QUEUE_BYTES = 2048
"""What a frame of the guest library's queues may have; see guest_kernel/net_queue.c."""


class Way(NamedTuple):
    """What the guest asks for, its network ring, and the longest frame that reaches it with a large
    enough read buffer.
    """

    features: int
    net_ring: NetRingLike = "off"
    longest: int = 65553


WAYS = {
    "call": Way(1),
    "queue": Way(5, longest=QUEUE_BYTES),
    "header": Way(13),
    "worker": Way(1, "on"),
    "inline": Way(1, "inline"),
}
by = pytest.mark.parametrize("by", WAYS)
by_socket = pytest.mark.parametrize("by", [name for name in WAYS if name != "header"])
buffers = pytest.mark.parametrize("buffer", [60, 1514, MTU + 18, 20000, 65554])


def frame(size: int) -> bytes:
    return bytes(12) + b"\x88\xb5" + bytes(2) + b"\x5a" * (size - 16)


def tagged(size: int) -> bytes:
    plain = frame(size - len(VLAN))
    return plain[:12] + VLAN + plain[12:]


def counts_of(
    guest: Guest,
    tmp_path: Path,
    way: Way,
    buffer: int,
    net: NetDevice,
    wire: socket.socket,
    frames: list[bytes],
) -> tuple[list[int], list[int]]:
    """Returns what the guest has read and what it should have: the numbers of frames, of their bytes,
    and of dropped frames.
    """
    path = tmp_path / "guest.elf"
    path.write_bytes(with_note(guest("net_rx_poll"), 1, way.features))
    config = VmConfig(mem=32, args=("--quiet", f"--buffer={buffer}"), net=net, net_ring=way.net_ring)
    with Image.open(path) as image, Vm(image, config, console=CAPTURE) as vm:
        vm.start(timeout=60)
        if isinstance(net, Tap):
            TapInterface(net.name, "").carries()
            subprocess.run(["ip", "link", "set", net.name, "mtu", "9000"], check=True)
        for data in frames:
            wire.send(data)
        wire.send(frame(60)[:14] + b"QUIT" + bytes(42))
        result = vm.wait(60)
    assert result.ok and result.console is not None, result
    words = result.console.decode().split()
    read = [int(words[words.index(name) + 1]) for name in ("frames", "bytes")]
    whole = [len(data) for data in frames if len(data) <= min(buffer, way.longest)]
    dropped = result.counters.net_rx_drops
    assert result.counters.net_rx_errors == 0
    return [*read, dropped], [len(whole) + 1, sum(whole) + 60, len(frames) - len(whole)]


@pytest.mark.tap
@buffers
@by
def test_an_mtu_raised_while_the_guest_runs_cuts_no_frame(
    guest: Guest, tap: TapInterface, tmp_path: Path, by: str, buffer: int
) -> None:
    tap.be_quiet()
    frames = [frame(size) for size in (60, 61, 1513, 1514, 1515, 2047, 2048, 2049, 5000, 9014)]
    frames += [tagged(size) for size in (60, 64, 1514, 1518, 9018)]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((tap.name, 0))
        got, expected = counts_of(guest, tmp_path, WAYS[by], buffer, Tap(tap.name), wire, frames)
    assert got == expected


@pytest.mark.backends
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
@buffers
@by_socket
def test_frames_of_a_socket_are_not_cut(
    guest: Guest, tmp_path: Path, by: str, buffer: int, kind: socket.SocketKind
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    sizes = (18, 60, 61, 1514, 1515, 1517, 1518, 1519, 2048, 2049, 19999, 20000, 20001, 65553, 65554, 70000)
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        net = NetFd(theirs.fileno(), mtu=MTU)
        got, expected = counts_of(
            guest, tmp_path, WAYS[by], buffer, net, ours, [frame(size) for size in sizes]
        )
    assert got == expected
