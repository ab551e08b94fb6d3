"""echo over a real TAP: ping and UDP from the host's own stack."""

import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support import Guest, TapInterface

from tender import Image, Tap, Vm, VmConfig

pytestmark = [pytest.mark.doors, pytest.mark.tap]
GUEST = "10.0.0.2"


@contextmanager
def echo(guest: Guest, tap: TapInterface, *args: str) -> Iterator[Vm]:
    """A running echo guest that has said that it is there."""
    said = threading.Event()
    with Image.open(guest("echo")) as image:
        vm = Vm(image, VmConfig(mem=8, args=args, net=Tap(tap.name)), console=lambda _: said.set())
    with vm:
        vm.start(timeout=110)
        assert said.wait(60)
        yield vm


def ping(*options: str) -> tuple[int, int]:
    """(sent, received) of a ping to the guest."""
    done = subprocess.run(["ping", *options, GUEST], capture_output=True, text=True, check=False)
    found = re.search(r"(\d+) packets transmitted, (\d+) received", done.stdout)
    assert found, done.stdout + done.stderr
    return int(found[1]), int(found[2])


def test_1000_pings_none_lost(guest: Guest, tap: TapInterface) -> None:
    with echo(guest, tap) as vm:
        assert ping("-q", "-c", "1000", "-i", "0.002", "-W", "10") == (1000, 1000)
        vm.stop()
        result = vm.wait(30)
        assert result is not None and result.counters.net_tx_drops == 0
        assert result.counters.net_tx_packets >= 1000


def test_pings_of_every_kind_of_size(guest: Guest, tap: TapInterface) -> None:
    with echo(guest, tap):
        for size in (0, 1, 2, 55, 56, 57, 1000, 1471, 1472):
            assert ping("-q", "-c", "2", "-i", "0.01", "-W", "10", "-s", str(size)) == (2, 2)


def test_udp_frames_of_every_size_up_to_the_mtu_come_back_unchanged(guest: Guest, tap: TapInterface) -> None:
    with echo(guest, tap), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(20)
        udp.connect((GUEST, 7))
        for size in range(1473):
            data = os.urandom(size)
            udp.send(data)
            assert udp.recv(65536) == data, size


def test_a_large_mtu_reaches_the_guest(guest: Guest, tap: TapInterface) -> None:
    subprocess.run(["ip", "link", "set", tap.name, "mtu", "9000"], check=True)
    with echo(guest, tap):
        assert ping("-q", "-c", "3", "-i", "0.01", "-W", "10", "-s", "8972") == (3, 3)


def test_an_interface_that_goes_down_and_comes_back_does_not_end_the_guest(
    guest: Guest, tap: TapInterface
) -> None:
    with echo(guest, tap) as vm:
        assert ping("-q", "-c", "1", "-W", "10") == (1, 1)
        tap.down()
        tap.up()
        assert ping("-q", "-c", "3", "-i", "0.5", "-W", "10")[1] >= 1
        vm.stop()
        result = vm.wait(30)
        assert result is not None and result.reason == "stopped"


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
        assert vm.wait(timeout=2) is None, "it goes on"
        assert vm.counters.hypercalls["poll"] < 1000, "and does not spin"
