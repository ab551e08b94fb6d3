"""echo over a real TAP: ping and UDP from the host's own stack."""

import os
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support import Guest, TapInterface, still_runs

from tender import Image, Tap, Vm, VmConfig

pytestmark = [pytest.mark.backends, pytest.mark.tap]
GUEST = "10.0.0.2"


@contextmanager
def echo(guest: Guest, tap: TapInterface, *args: str) -> Iterator[Vm]:
    """A running echo guest that has printed its first line."""
    said = threading.Event()
    with Image.open(guest("echo")) as image:
        vm = Vm(image, VmConfig(mem=8, args=args, net=Tap(tap.name)), console=lambda _: said.set())
    with vm:
        vm.start(timeout=110)
        assert said.wait(60)
        yield vm


ECHO_REPLY, ECHO_REQUEST = 0, 8  # linux/icmp.h
LIMIT_S = 60.0


class Pinger:
    """Sends echo requests to the guest through the host's own stack. `ping` cannot judge whether a
    reply is lost: once it has had other replies, it does not wait for late ones.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._socket.connect((GUEST, 0))
        self._ident = os.getpid() & 0xFFFF
        self.sent = 0

    def __enter__(self) -> "Pinger":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> int:
        """Sends one request and returns its sequence number."""
        self.sent += 1
        head = struct.pack(">BBHHH", ECHO_REQUEST, 0, 0, self._ident, self.sent)
        checksum = rfc1071(head + data)
        self._socket.send(head[:2] + struct.pack(">H", checksum) + head[4:] + data)
        return self.sent

    def reply(self, limit_s: float) -> tuple[int, bytes] | None:
        """Returns the number and the data of the next reply to one of our requests, or None after the
        limit.
        """
        until = time.monotonic() + limit_s
        while select.select([self._socket], [], [], max(0.0, until - time.monotonic()))[0]:
            packet = self._socket.recv(65536)
            icmp = packet[(packet[0] & 15) * 4 :]
            kind, _, _, ident, number = struct.unpack_from(">BBHHH", icmp)
            if (kind, ident) == (ECHO_REPLY, self._ident):
                return number, icmp[8:]
        return None

    def answered(self) -> None:
        """Sends requests until one is answered: then the host has the guest's address. Later replies
        to these are dropped.
        """
        until = time.monotonic() + LIMIT_S
        while self._send_and_wait() is None:
            assert time.monotonic() < until, "no request was answered"

    def _send_and_wait(self) -> tuple[int, bytes] | None:
        try:
            self.send(b"")
        except OSError:  # while the interface is down, or after nobody answered who has the address
            time.sleep(0.05)
            return None
        return self.reply(0.5)

    def none_lost(self, count: int, size: int, at_once: int = 16) -> None:
        """Each of `count` requests is answered once, with its own data. At most `at_once` requests are
        on the way.
        """
        self.answered()
        waiting: dict[int, bytes] = {}
        first = self.sent + 1
        for _ in range(count):
            data = os.urandom(size)
            waiting[self.send(data)] = data
            while len(waiting) >= at_once:
                self._take(waiting, first)
        while waiting:
            self._take(waiting, first)

    def _take(self, waiting: dict[int, bytes], first: int) -> None:
        reply = self.reply(LIMIT_S)
        assert reply is not None, f"lost: {sorted(waiting)}"
        number, data = reply
        if number >= first:
            assert waiting.pop(number) == data


def rfc1071(data: bytes) -> int:
    """Returns the internet checksum."""
    even = data + bytes(len(data) % 2)
    total = sum(int.from_bytes(even[i : i + 2]) for i in range(0, len(even), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def test_1000_pings_none_lost(guest: Guest, tap: TapInterface) -> None:
    with echo(guest, tap) as vm, Pinger() as pinger:
        pinger.none_lost(1000, 56)
        vm.stop()
        result = vm.wait(120)
        assert result.counters.net_tx_drops == 0
        assert result.counters.net_tx_packets >= 1000


def test_pings_of_every_kind_of_size(guest: Guest, tap: TapInterface) -> None:
    with echo(guest, tap), Pinger() as pinger:
        for size in (0, 1, 2, 55, 56, 57, 1000, 1471, 1472):
            pinger.none_lost(2, size)


def test_a_real_ping_is_answered(guest: Guest, tap: TapInterface) -> None:
    """ping sends until it has three replies, which is status 0, or for a minute. By then more replies
    may have come.
    """
    with echo(guest, tap):
        words = ["ping", "-q", "-c", "3", "-i", "0.05", "-w", "60", GUEST]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_udp_frames_of_every_size_up_to_the_mtu_come_back_unchanged(guest: Guest, tap: TapInterface) -> None:
    with echo(guest, tap), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(120)
        udp.connect((GUEST, 7))
        for size in range(1473):
            data = os.urandom(size)
            udp.send(data)
            assert udp.recv(65536) == data, size


def test_a_large_mtu_reaches_the_guest(guest: Guest, tap: TapInterface) -> None:
    subprocess.run(["ip", "link", "set", tap.name, "mtu", "9000"], check=True)
    with echo(guest, tap), Pinger() as pinger:
        pinger.none_lost(3, 8972)


def test_an_interface_that_goes_down_and_comes_back_does_not_end_the_guest(
    guest: Guest, tap: TapInterface
) -> None:
    with echo(guest, tap) as vm, Pinger() as pinger:
        pinger.answered()
        tap.down()
        tap.up()
        pinger.answered()
        vm.stop()
        result = vm.wait(120)
        assert result.reason == "stopped"


def test_a_guest_that_sends_while_its_interface_is_down_goes_on(guest: Guest, tap: TapInterface) -> None:
    with Image.open(guest("net_tx")) as image:
        vm = Vm(image, VmConfig(mem=8, args=("--count=3", "--size=60"), net=Tap(tap.name)))
    with vm:
        tap.down()
        result = vm.run(timeout=60)
    assert result.ok and result.counters.net_tx_drops == 3


def test_frames_of_every_odd_size_never_end_the_guest(guest: Guest, tap: TapInterface) -> None:
    with Image.open(guest("net_tx")) as image, Vm(image, VmConfig(mem=8, net=Tap(tap.name))) as vm:
        result = vm.run(timeout=60)
    assert result.ok


def test_an_interface_that_is_deleted_does_not_end_the_guest(guest: Guest, tap: TapInterface) -> None:
    with echo(guest, tap) as vm:
        subprocess.run(["ip", "link", "del", tap.name], check=True)
        assert still_runs(vm, 2)
        assert vm.counters.hypercalls["poll"] < 1000, "and does not spin"
