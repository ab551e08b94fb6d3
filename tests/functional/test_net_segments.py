"""TCP segments of a guest that knows only frames: on the host's side of its TAP they are one large
frame.

The guest (tests/guests/ring) takes segments and posts them again. What comes in as one frame goes
out as one.
"""

import fcntl
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import Guest, TapInterface

from tender import Image, NetRingLike, Tap, Vm, VmConfig

pytestmark = [pytest.mark.kvm, pytest.mark.tap]
SOL_PACKET, PACKET_VNET_HDR, ETH_P_IP = 263, 15, 0x0800
HEAD = 14 + 20 + 20
FIN, PSH, ACK, CWR = 1, 8, 16, 128
NEEDS_CSUM, GSO_TCP4 = 1, 1
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 2, 0x1000
both = pytest.mark.parametrize("net_ring", ["on", "inline"], ids=["worker", "inline"])


def sum_of(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) // 2 * 2]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@dataclass(frozen=True)
class Frame:
    """Ethernet, IPv4 and TCP. With `partial` the TCP checksum covers the pseudo header alone."""

    seq: int
    payload: bytes
    flags: int = ACK
    number: int = 7
    partial: bool = False

    def bytes(self) -> bytes:
        addresses = socket.inet_aton("10.0.0.1") + socket.inet_aton("10.0.0.2")
        tcp_len = 20 + len(self.payload)
        pseudo = addresses + struct.pack(">HH", socket.IPPROTO_TCP, tcp_len)
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + tcp_len, self.number, 0, 64, socket.IPPROTO_TCP, 0)
        ip = ip[:10] + struct.pack(">H", 0xFFFF ^ sum_of(ip + addresses)) + addresses
        tcp = struct.pack(">HHIIBBHHH", 7000, 7001, self.seq, 5, 5 << 4, self.flags, 900, 0, 0)
        total = sum_of(pseudo) if self.partial else 0xFFFF ^ sum_of(pseudo + tcp + self.payload)
        tcp = tcp[:16] + struct.pack(">H", total) + tcp[18:]
        return bytes(6 * [2]) + bytes(6 * [4]) + b"\x08\0" + ip + tcp + self.payload


def payload(size: int) -> bytes:
    return bytes((i * 7 + i // 256) & 255 for i in range(size))


def header(gso_size: int) -> bytes:
    return struct.pack("<BBHHHH", NEEDS_CSUM, GSO_TCP4 if gso_size else 0, HEAD, gso_size, 34, 16)


@contextmanager
def packets(tap: TapInterface) -> Iterator[socket.socket]:
    """Each packet of the interface with its net header before it, as the host's kernel has it."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP)) as sock:
        sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sock.bind((tap.name, ETH_P_IP))
        sock.settimeout(120)
        yield sock


def next_from_guest(sock: socket.socket) -> tuple[bytes, bytes]:
    """Returns the next frame with our MACs that the host itself did not send: its net header, and the
    frame.
    """
    while True:
        data, about = sock.recvfrom(70000)
        if about[2] != socket.PACKET_OUTGOING and data[10:22] == bytes(6 * [2]) + bytes(6 * [4]):
            return data[:10], data[10:]


@contextmanager
def bouncing(path: Path, tap: TapInterface, net_ring: NetRingLike, count: int, *args: str) -> Iterator[Vm]:
    ready = threading.Event()
    config = VmConfig(
        mem=16, args=("bounce", f"--count={count}", *args), net=Tap(tap.name), net_ring=net_ring
    )
    with Image.open(path) as image, Vm(image, config, console=lambda _: ready.set(), backend="kvm") as vm:
        vm.start(timeout=60)
        assert ready.wait(120)
        tap.carries()
        yield vm
        result = vm.wait(60)
        assert result.ok, result


@both
@pytest.mark.parametrize("calls", [False, True], ids=["ring", "calls"])
@pytest.mark.parametrize(("size", "segment"), [(14600, 1460), (1461, 1460), (60001, 1400), (300, 100)])
def test_one_frame_comes_as_segments_and_goes_as_one(
    guest: Guest, tap: TapInterface, net_ring: NetRingLike, calls: bool, size: int, segment: int
) -> None:
    count = -(-size // segment)
    large = Frame(0xFFFFFF00, payload(size), flags=ACK | PSH, partial=True)
    with packets(tap) as sock:
        with bouncing(guest("ring"), tap, net_ring, count, *(["--calls="] if calls else [])) as vm:
            sock.send(header(segment) + large.bytes())
            got, frame = next_from_guest(sock)
            vm.wait(60)
            counters = vm.counters
    assert frame == large.bytes()
    assert got[:2] == header(segment)[:2] and got[4:] == header(segment)[4:]
    assert counters.net_tx_packets == count and counters.net_tx_drops == 0
    assert counters.net_tx_bytes == size + count * HEAD
    assert counters.net_rx_drops == counters.net_rx_errors == 0


@both
def test_segments_that_do_not_follow_go_one_by_one(
    guest: Guest, tap: TapInterface, net_ring: NetRingLike
) -> None:
    """What goes out is what the guest posted, byte for byte, and in order."""
    frames = [
        Frame(1000, payload(100), number=1),
        Frame(1101, payload(100), number=2),  # a gap
        Frame(1201, payload(50), flags=ACK | PSH, number=4),  # follows, but not by its number
        Frame(1251, payload(60), number=5),  # longer than the segment before it
    ]
    broken = bytearray(Frame(1311, payload(60), number=6).bytes())
    broken[-1] ^= 1  # a wrong checksum stays wrong
    sent = [*(frame.bytes() for frame in frames), bytes(broken)]
    with packets(tap) as sock, bouncing(guest("ring"), tap, net_ring, len(sent)) as vm:
        for frame in sent:
            sock.send(bytes(10) + frame)
        came = [next_from_guest(sock)[1] for _ in sent]
        vm.wait(60)
        assert vm.counters.net_tx_packets == len(sent)
    assert came == sent


def test_a_partial_checksum_is_completed_for_the_guest(guest: Guest, tap: TapInterface) -> None:
    short = Frame(1, payload(99), partial=True)
    with packets(tap) as sock, bouncing(guest("ring"), tap, "on", 1):
        sock.send(header(0) + short.bytes())
        _, came = next_from_guest(sock)
    assert came == Frame(1, payload(99)).bytes()


@pytest.mark.parametrize("words", [[], ["--no-net-ring"]], ids=["ring", "no-ring"])
def test_the_command_joins_segments_where_it_offers_the_ring(
    guest: Guest, tap: TapInterface, words: list[str]
) -> None:
    offered = not words and len(os.sched_getaffinity(0)) > 1
    large = Frame(1, payload(14600), partial=True)
    command = [
        "tender",
        "--backend=kvm",
        "--mem=64",
        f"--net={tap.name}",
        *words,
        str(guest("ring")),
        "bounce",
    ]
    with packets(tap) as sock, subprocess.Popen(
        [*command, "--count=10"], stdout=subprocess.PIPE, text=True
    ) as tender:  # fmt: skip
        assert tender.stdout is not None
        said = tender.stdout.readline()
        assert said == ("ring: ready\n" if offered else "ring: FAILED none is offered\n")
        if offered:
            tap.carries()
            sock.send(header(1460) + large.bytes())
            assert next_from_guest(sock)[1] == large.bytes()
        assert tender.wait(60) == (0 if offered else 1)


def test_no_offload_stays_with_the_interface(guest: Guest, tap: TapInterface) -> None:
    """The next process may not know the net header: its frames are complete, and no larger than the
    interface's.
    """
    with packets(tap) as sock, bouncing(guest("ring"), tap, "on", 1):
        sock.send(bytes(10) + Frame(1, b"x").bytes())
        next_from_guest(sock)
    with packets(tap) as sock, open("/dev/net/tun", "r+b", buffering=0) as tun:
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", tap.name.encode(), IFF_TAP | IFF_NO_PI))
        tap.carries()
        sock.send(header(1000) + Frame(1, payload(3000), partial=True).bytes())
        came: list[bytes] = []
        while len(came) < 3:
            frame = tun.read(70000)
            came += [frame] if frame[23:24] == b"\x06" else []
    assert came == [
        Frame(1 + 1000 * i, payload(3000)[1000 * i :][:1000], number=7 + i).bytes() for i in range(3)
    ]
