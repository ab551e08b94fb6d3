"""Devices that VmConfig has no keyword for: given as option texts, which C reads for a device of any
kind.
"""

import os
import socket

import pytest
from support import Guest

from tender import Backend, DeviceError, Image, ManifestError, NetFd, Vm, VmConfig
from tender.cli import attach
from tender.cli.options import Setting, UsageError
from tender.config import OtherDevice
from tender.errors import ConfigError
from tender.image import Device

MAC = b"\x02\0\0\0\0\x07"


def wire(fd: int) -> OtherDevice:
    """A socket as a network, given in the way of kinds that VmConfig does not know by name."""
    return OtherDevice("net", {"net": f"@{fd}", "net-mac": MAC.hex(":")})


@pytest.mark.backends
def test_the_guest_has_the_device_with_what_was_filled_in(guest: Guest, backend: Backend) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, Image.open(guest("net_tx")) as image:
        config = VmConfig(mem=16, args=("--size=60",), devices={"service0": wire(theirs.fileno())})
        with Vm(image, config, backend=backend) as vm:
            assert vm.run(timeout=60).guest_status == 0
        theirs.close()
        frame = ours.recv(2000)
        assert (len(frame), frame[6:12], ours.recv(2000)) == (60, MAC, b"")


def test_a_device_must_be_declared_and_given_once(guest: Guest) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, Image.open(guest("net_tx")) as image:
        with pytest.raises(ManifestError, match="other"):
            Vm(image, VmConfig(devices={"other": wire(theirs.fileno())}))
        twice = VmConfig(net=NetFd(ours.fileno()), devices={"service0": wire(theirs.fileno())})
        with pytest.raises(ManifestError, match="service0: attached twice"):
            Vm(image, twice)
    with pytest.raises(ConfigError, match="devices: a: 5 is none of OtherDevice"):
        VmConfig(devices={"a": 5})  # type: ignore[dict-item]


def test_settings_that_are_no_device_or_cannot_be_opened_are_refused(guest: Guest) -> None:
    with Image.open(guest("net_tx")) as image:
        for words in ({"net": "@x"}, {"net-mac": "01:00:00:00:00:00", "net": "@3"}, {"block": "@3"}):
            with pytest.raises(ConfigError, match=" is not a value of "):
                Vm(image, VmConfig(devices=OtherDevice("net", words)))
        with pytest.raises(DeviceError, match="@987: Bad file descriptor"):
            Vm(image, VmConfig(devices=OtherDevice("net", {"net": "@987"})))


def setting(value: str) -> dict[str, Setting]:
    return {"net": Setting("net", "a", value, option=f"--net:a={value}")}


def test_an_options_value_is_read_as_its_kind_defines() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        given = f"@{ours.fileno()}"
        with pytest.raises(DeviceError, match=f"{given}: Bad file descriptor"):
            attach._other("net", setting(given))  # this descriptor belongs to this process alone
        os.set_inheritable(ours.fileno(), True)
        assert attach._other("net", setting(given)) == OtherDevice("net", {"net": given})
    with pytest.raises(UsageError, match="'@x' is not a value of 'net'") as error:
        attach._other("net", setting("@x"))
    assert "--net:a=@x" in str(error.value) and error.value.command_hint.startswith("write --net:NAME=IFACE")
    with pytest.raises(UsageError):
        attach.resolve(setting("@7").values(), [Device(name="a", kind="block", handle=1)], "app.elf")
