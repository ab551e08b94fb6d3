"""Devices that VmConfig has no keyword for: what a kind of its own in tender/devices is attached by."""

import os
import socket
import sys
from collections.abc import Callable
from dataclasses import field
from types import ModuleType

import pytest
from support import Guest

from tender import Backend, Image, ManifestError, NetFd, Vm, VmConfig
from tender.cli.attach import resolve
from tender.cli.options import Setting, UsageError
from tender.config import OtherDevice
from tender.errors import ConfigError
from tender.image import Device
from tender.native import CData, descriptor
from tender.values import value

MAC = b"\x02\0\0\0\0\x07"


@value
class Wire(OtherDevice):
    """A socket as a network, by the way of kinds that nobody knows by name."""

    kind = "net"
    fd: int = field(kw_only=False)

    def open(self, entry: CData) -> CData:
        owner = descriptor()
        owner.fd = os.dup(self.fd)
        os.set_blocking(owner.fd, False)
        entry.u.net.mac, entry.u.net.mtu = MAC, 1400
        return owner


@pytest.mark.doors
def test_the_guest_has_the_device_with_what_was_filled_in(guest: Guest, door: Backend) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, Image.open(guest("net_tx")) as image:
        config = VmConfig(mem=16, args=("--size=60",), devices={"service0": Wire(theirs.fileno())})
        with Vm(image, config, backend=door) as vm:
            assert vm.run(timeout=60).guest_status == 0
        theirs.close()
        frame = ours.recv(2000)
        assert (len(frame), frame[6:12], ours.recv(2000)) == (60, MAC, b"")


def test_it_must_be_declared_and_is_given_once(guest: Guest) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, Image.open(guest("net_tx")) as image:
        wire = Wire(theirs.fileno())
        with pytest.raises(ManifestError, match="other"):
            Vm(image, VmConfig(devices={"other": wire}))
        twice = VmConfig(net=NetFd(ours.fileno()), devices={"service0": wire})
        with pytest.raises(ManifestError, match="service0: attached twice"):
            Vm(image, twice)
    with pytest.raises(ConfigError, match="devices: a: 5 is none of OtherDevice"):
        VmConfig(devices={"a": 5})  # type: ignore[dict-item]


@pytest.fixture
def kind_of_wires(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Setting]:
    def given(value: str) -> Wire:
        if not value.isdecimal():
            raise ConfigError(f"{value}: not a number", hint="write --wire:NAME=N")
        return Wire(int(value))

    module = ModuleType("tender.devices.wire")
    module.given = given  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tender.devices.wire", module)
    return lambda value: Setting("wire", "a", value, option=f"--wire:a={value}")


def test_an_options_value_is_read_by_the_kinds_module(kind_of_wires: Callable[[str], Setting]) -> None:
    declared = [Device(name="a", kind="wire", handle=1)]
    assert resolve([kind_of_wires("7")], declared, "app.elf") == ({}, {}, {"a": Wire(7)})
    with pytest.raises(UsageError, match="x: not a number") as error:
        resolve([kind_of_wires("x")], declared, "app.elf")
    assert "--wire:a=x" in str(error.value)
    with pytest.raises(UsageError):
        resolve([kind_of_wires("7")], [Device(name="a", kind="net", handle=1)], "app.elf")
